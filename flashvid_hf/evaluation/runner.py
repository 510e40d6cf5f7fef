"""Ask a model the questions of a benchmark, under several settings of the compression.

Every video is decoded and preprocessed once. For each setting it is encoded and compressed once, for all its questions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..models.outputs import FlashVIDVideoOutput
from ..models.upstream import join_level
from ..video.pipeline_flashvid import media_arguments
from ..video.reading import VideoClip
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
    """The answer of a model to one question.

    Args:
        run, video, question: name of the run, and ids of the video and the question.
        type, form: type and form of the question.
        text: the text that the model wrote.
        correct: whether that text is right.
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
    batch_size: int = 1,
    done: frozenset[tuple[str, str]] = frozenset(),
) -> Iterator[list[Answer]]:
    """Answer all questions of the items, greedily.

    Args:
        model: a generative FlashVID model.
        num_frames: frames taken from every video, spread evenly.
        max_new_tokens: longest answer, in tokens.
        batch_size: questions about a video that are answered together.
        done: pairs of a run's name and a video's id that are not asked again.

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
        groups = [item.questions[i : i + batch_size] for i in range(0, len(item.questions), batch_size)]
        batches = [(group, _process(processor, clip, group, model.device)) for group in groups]
        first = _process(processor, clip, item.questions[:1], model.device)
        for run in pending:
            names = model.model.encoder_inputs["video"]
            given = {name: first[name] for name in names if name in first}
            with torch.no_grad():
                encoded = model.model.get_video_features(**given, **run.settings, return_dict=True)
            yield [
                answer
                for questions, inputs in batches
                for answer in _answer(model, processor, item, run, questions, inputs, encoded, max_new_tokens)
            ]


def _process(processor: Any, clip: VideoClip, questions: Sequence[Question], device: torch.device) -> dict[str, Any]:
    """The model's inputs for some questions about the same video."""
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.prompt}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in questions
    ]
    media = media_arguments([clip] * len(prompts), [], device, processor)
    inputs = processor(text=prompts, padding=True, padding_side="left", return_tensors="pt", **media)
    return dict(inputs.to(device))


def _answer(
    model: Any,
    processor: Any,
    item: VideoItem,
    run: Run,
    questions: Sequence[Question],
    inputs: dict[str, Any],
    encoded: FlashVIDVideoOutput,
    max_new_tokens: int,
) -> Iterator[Answer]:
    outputs = model.generate(
        **{name: value for name, value in inputs.items() if name != "pixel_values_videos"},
        mm_encoder_outputs={"video": _repeat(encoded, len(questions))},
        do_sample=False,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
    )
    texts = processor.batch_decode(outputs.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    report = outputs.report
    counts = zip(report.tokens, report.entered, report.remained, report.retained, strict=True)
    for question, text, (tokens, entered, remained, retained) in zip(questions, texts, counts, strict=True):
        yield Answer(
            run=run.name,
            video=item.id,
            question=question.id,
            type=question.type,
            form=question.form,
            text=text.strip(),
            correct=question.is_correct(text),
            tokens=tokens,
            entered=entered,
            remained=remained,
            retained=retained,
        )


def _repeat(encoded: FlashVIDVideoOutput, times: int) -> FlashVIDVideoOutput:
    """The outputs of the vision tower for the same video in every sample of a batch."""
    levels = encoded.deepstack_features
    if levels is not None:
        levels = [(join_level(level),) * times for level in levels]
    return FlashVIDVideoOutput(
        pooler_output=tuple(encoded.pooler_output) * times,
        videos=None if encoded.videos is None else encoded.videos * times,
        settings=encoded.settings,
        stopwatch=encoded.stopwatch,
        deepstack_features=levels,
    )
