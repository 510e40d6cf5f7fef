"""Ask a model the questions of a benchmark, under several settings of the compression.

Every video is decoded and preprocessed once, and encoded and compressed once for each setting, which its questions share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..pipeline_flashvid import media_arguments
from .items import Question, VideoItem


@dataclass(frozen=True)
class Run:
    """A setting to evaluate.

    Args:
        name: unique within an evaluation.
        settings: FlashVID's fields that differ from the model's configuration.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Args:
        run, video, question: names of the run and ids of the video and the question.
        type, form: of the question.
        text: what the model wrote.
        correct: whether that is right.
        tokens, entered, remained: video tokens before the compression, those that entered the language model, and
            those that its last layers saw.
        retained: share of the video tokens that a layer saw, averaged over the layers.
    """

    run: str
    video: str
    question: str
    type: str
    form: str
    text: str
    correct: bool
    tokens: int
    entered: int
    remained: int
    retained: float


def answer_items(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    items: Iterable[VideoItem],
    runs: Sequence[Run],
    *,
    num_frames: int,
    max_new_tokens: int = 16,
    done: frozenset[tuple[str, str]] = frozenset(),
) -> Iterator[list[Answer]]:
    """Answer all questions of the items, greedily.

    Args:
        model: a generative FlashVID model.
        num_frames: frames taken from every video, spread evenly.
        max_new_tokens: longest answer, in tokens.
        done: names of runs with ids of videos that are not asked again.

    Yields:
        The answers about one video in one run.

    Raises:
        ValueError: a video cannot be read, or a setting is out of range.
    """
    for item in items:
        pending = [run for run in runs if (run.name, item.id) not in done]
        if not pending:
            continue
        clip = item.load(num_frames)
        inputs = [_process(processor, clip, question, model.device) for question in item.questions]
        for run in pending:
            yield _answer_item(model, processor, item, run, inputs, max_new_tokens)


def _process(processor: Any, clip: Any, question: Question, device: torch.device) -> dict[str, Any]:
    """The model's inputs for one question."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.prompt}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], return_tensors="pt", **media_arguments([clip], [], device))
    return dict(inputs.to(device))


@torch.no_grad()
def _answer_item(
    model: Any, processor: Any, item: VideoItem, run: Run, inputs: list[dict[str, Any]], max_new_tokens: int
) -> list[Answer]:
    names = model.model.encoder_inputs["video"]
    given = {name: inputs[0][name] for name in names if name in inputs[0]}
    encoded = model.model.get_video_features(**given, **run.settings, return_dict=True)
    answers = []
    for question, of_question in zip(item.questions, inputs, strict=True):
        outputs = model.generate(
            **{name: value for name, value in of_question.items() if name != "pixel_values_videos"},
            mm_encoder_outputs={"video": encoded},
            do_sample=False,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
        )
        new = outputs.sequences[:, of_question["input_ids"].shape[1] :]
        text = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        report = outputs.report
        (tokens,), (entered,), (remained,), (retained,) = (
            report.tokens, report.entered, report.remained, report.retained,
        )  # fmt: skip
        answers.append(
            Answer(
                run=run.name,
                video=item.id,
                question=question.id,
                type=question.type,
                form=question.form,
                text=text,
                correct=question.is_correct(text),
                tokens=tokens,
                entered=entered,
                remained=remained,
                retained=retained,
            )
        )
    return answers
