"""The pipeline `video-text-to-text`: every form of input, generation arguments, batches, counts and errors."""

import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from checkpoints import build_flashvid_folder, build_upstream_folder, moving_frames, once, run_program, untimed
from PIL import Image
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
    set_seed,
)

from flashvid_hf import (
    FlashVIDQwen2_5_VLForConditionalGeneration,
    VideoTextToTextPipeline,
    read_video,
)
from flashvid_hf.models.upstream import CACHE

TASK = "video-text-to-text"
QUESTION = "What moves?"
OTHER_QUESTION = "Where to, and how fast does it go?"
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def write_video(path: Path, frames: np.ndarray, fps: int = 4) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> SimpleNamespace:
    """Videos, and files that look like videos."""
    folder = tmp_path_factory.mktemp("videos")
    clip = write_video(folder / "clip.mp4", moving_frames(8))  # 4 temporal grids of 6 tokens
    empty, text, truncated = (folder / f"{name}.mp4" for name in ("empty", "text", "truncated"))
    empty.touch()
    text.write_text("This is no video.\n" * 100)
    truncated.write_bytes(clip.read_bytes()[:-2000])
    return SimpleNamespace(
        folder=folder,
        clip=clip,
        other=write_video(folder / "other.mp4", moving_frames(5, 84, 84, seed=1)),  # 3 grids of 9 tokens
        long=write_video(folder / "long.mp4", moving_frames(40)),
        empty=empty,
        text=text,
        truncated=truncated,
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "pipeline-flashvid", build_flashvid_folder)


@pytest.fixture(scope="session")
def upstream_folder(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "pipeline-upstream", build_upstream_folder)


@pytest.fixture(scope="session")
def pipe(folder) -> VideoTextToTextPipeline:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    pipe = pipeline(TASK, model=model, processor=AutoProcessor.from_pretrained(folder), device="cpu")
    assert type(pipe) is VideoTextToTextPipeline
    assert type(pipe.model) is FlashVIDQwen2_5_VLForConditionalGeneration
    return pipe


@pytest.fixture(scope="session")
def upstream(upstream_folder) -> VideoTextToTextPipeline:
    """The pipeline on an upstream model."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(upstream_folder)
    return pipeline(TASK, model=model, processor=AutoProcessor.from_pretrained(upstream_folder), device="cpu")


@pytest.fixture(autouse=True)
def no_seconds(monkeypatch):
    """Remove the times, so that answers can be compared; tests/test_pipeline_stages.py tests the times."""
    postprocess = VideoTextToTextPipeline.postprocess
    monkeypatch.setattr(VideoTextToTextPipeline, "postprocess", lambda *arguments: untimed(postprocess(*arguments)))


@pytest.fixture
def calls(pipe, monkeypatch) -> list[SimpleNamespace]:
    """The calls of the model's `generate`: arguments and results."""
    made, generate = [], pipe.model.generate

    def spy(**kwargs):
        made.append(SimpleNamespace(inputs=kwargs, outputs=generate(**kwargs)))
        return made[-1].outputs

    monkeypatch.setattr(pipe.model, "generate", spy)
    return made


@pytest.fixture(scope="session")
def answer(pipe, files):
    """The answer of a direct call of `generate` about one clip."""
    memo = {}

    def answer(name: str = "clip", question: str = QUESTION) -> list[dict[str, Any]]:
        if (name, question) not in memo:
            clip = read_video(getattr(files, name))
            (text,) = generate(pipe, [chat(question, "video")], videos=[clip.frames], video_metadata=[clip.metadata])
            counts = {"clip": count(pipe, (4, 6)), "other": count(pipe, (3, 9))}[name]
            memo[name, question] = [{"generated_text": text, "video_tokens": counts}]
        return memo[name, question]

    return answer


def chat(question: str, *parts: str | dict) -> list[dict]:
    """A chat of one message: videos and images, or only their types, followed by the question."""
    media = [{"type": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def generate(pipe, chats: list[list[dict]], generate_kwargs: dict | None = None, **media: Any) -> list[str]:
    """Texts from the processor and `generate`, without the pipeline."""
    prompts = [pipe.processor.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
    if "videos" in media:
        media["do_sample_frames"] = False
    inputs = pipe.processor(text=prompts, padding=True, padding_side="left", return_tensors="pt", **media)
    sequences = pipe.model.generate(**inputs, **(generate_kwargs or GREEDY))
    return pipe.processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def count(pipe, *videos: tuple[int, int]) -> dict[str, int]:
    """Video tokens of a prompt at each stage. A video is given by its temporal grids and its tokens a grid."""
    config = pipe.model.config
    total = sum(grids * tokens for grids, tokens in videos)
    entered = sum(config.method.exact_num_tokens(grids, tokens) for grids, tokens in videos)
    return {"total": total, "entered": entered, "remained": math.ceil(config.llm_retention_ratio * entered)}


def test_the_compared_answers_say_something(pipe, answer):
    """The counts of the stages differ, and other videos and questions get other answers."""
    assert count(pipe, (4, 6)) == {"total": 24, "entered": 8, "remained": 3}
    assert count(pipe, (3, 9)) == {"total": 27, "entered": 9, "remained": 3}
    texts = [
        answer(name, question)[0]["generated_text"]
        for name in ("clip", "other")
        for question in (QUESTION, OTHER_QUESTION)
    ]
    assert len(set(texts)) == 4


# Forms of input


@pytest.mark.parametrize("form", [str, Path, Path.as_uri, Path.read_bytes], ids=["str", "Path", "URL", "bytes"])
def test_file_and_question(pipe, files, answer, form):
    assert pipe(form(files.clip), text=QUESTION, **GREEDY) == answer()
    assert pipe(videos=form(files.clip), text=OTHER_QUESTION, **GREEDY) == answer("clip", OTHER_QUESTION)


@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_chat_with_a_file(pipe, files, answer, key):
    messages = chat(QUESTION, {"type": "video", key: str(files.clip)})
    assert pipe(messages, **GREEDY) == answer()
    assert pipe(text=messages, **GREEDY) == answer()


def test_chat_of_several_messages(pipe, files):
    """Text in both forms, and earlier answers. The videos enter at their places in the chat."""
    question, earlier = (
        chat(QUESTION, {"type": "video", "path": files.clip}),
        {"role": "assistant", "content": "A box."},
    )
    system = {"role": "system", "content": "Answer briefly."}
    messages = [system, *question, earlier, *chat("And here?", {"type": "video", "path": files.other})]
    plain = [system, *chat(QUESTION, "video"), earlier, *chat("And here?", "video")]
    clips = [read_video(files.clip), read_video(files.other)]
    (text,) = generate(pipe, [plain], videos=[c.frames for c in clips], video_metadata=[c.metadata for c in clips])
    assert pipe(messages, **GREEDY) == [{"generated_text": text, "video_tokens": count(pipe, (4, 6), (3, 9))}]
    assert messages[1]["content"][0] == {"type": "video", "path": files.clip}, "the caller's chat is changed"


def test_videos_and_questions(pipe, files, answer):
    clip, other = files.clip, files.other
    assert pipe([clip, other], text=QUESTION, **GREEDY) == [answer("clip"), answer("other")]
    assert pipe([clip, other], text=[QUESTION, OTHER_QUESTION], **GREEDY) == [
        answer("clip", QUESTION),
        answer("other", OTHER_QUESTION),
    ]
    assert pipe(clip, text=[QUESTION, OTHER_QUESTION], **GREEDY) == [answer("clip"), answer("clip", OTHER_QUESTION)]
    assert pipe((str(clip), str(other)), text=(QUESTION, QUESTION), **GREEDY) == [answer("clip"), answer("other")]
    assert pipe([clip], text=QUESTION, **GREEDY) == [answer("clip")]


def test_list_of_chats(pipe, files, answer):
    chats = [chat(QUESTION, {"type": "video", "path": path}) for path in (files.clip, files.other)]
    assert pipe(chats, **GREEDY) == [answer("clip"), answer("other")]
    assert pipe(text=chats, **GREEDY) == [answer("clip"), answer("other")]


class Questions(Dataset):
    def __init__(self, items: list):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


@pytest.mark.parametrize("kind", [list, iter, Questions], ids=["list", "generator", "dataset"])
def test_dictionaries(pipe, files, answer, kind):
    items = [{"video": files.clip, "text": QUESTION}, {"video": str(files.other), "text": OTHER_QUESTION}]
    given = (item for item in items) if kind is iter else kind(items)
    assert list(pipe(given, **GREEDY)) == [answer("clip", QUESTION), answer("other", OTHER_QUESTION)]
    assert pipe(items[0], **GREEDY) == answer("clip", QUESTION)


def test_generator_of_chats(pipe, files, answer):
    chats = (chat(QUESTION, {"type": "video", "path": path}) for path in (files.clip, files.other))
    answers = iter(pipe(chats, **GREEDY))
    assert next(answers) == answer("clip")
    assert next(answers) == answer("other")


FRAMES = {
    "array": lambda frames: frames,
    "array, channels first": lambda frames: frames.transpose(0, 3, 1, 2),
    "tensor": torch.from_numpy,
    "tensor, channels first": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "float tensor": lambda frames: torch.from_numpy(frames) / 255,
    "list of pictures": lambda frames: [Image.fromarray(frame) for frame in frames],
    "list of arrays": list,
    "list of tensors": lambda frames: list(torch.from_numpy(frames)),
}


@pytest.mark.parametrize("form", FRAMES.values(), ids=FRAMES.keys())
def test_decoded_frames_with_metadata(pipe, files, answer, form):
    """With the file's frame rate they are equivalent to the file."""
    frames = form(read_video(files.clip).frames)
    part = {"type": "video", "video": frames, "video_metadata": {"fps": 4.0}}
    assert pipe(chat(QUESTION, part), **GREEDY) == answer()


@pytest.mark.parametrize("form", FRAMES.values(), ids=FRAMES.keys())
def test_decoded_frames_without_metadata(pipe, files, form):
    """They are treated as upstream's processor treats frames without metadata."""
    frames = read_video(files.clip).frames
    (text,) = generate(pipe, [chat(QUESTION, "video")], videos=[frames])
    expected = [{"generated_text": text, "video_tokens": count(pipe, (4, 6))}]
    assert pipe(form(frames), text=QUESTION, **GREEDY) == expected
    assert pipe([form(frames), form(frames)], text=QUESTION, **GREEDY) == [expected, expected]


def test_files_and_decoded_frames_in_one_call(pipe, files, answer):
    """The metadata of a video are used also beside a video without metadata, in a list and in a chat."""
    clip = read_video(files.other)
    (frames_only,) = generate(pipe, [chat(QUESTION, "video")], videos=[clip.frames])
    expected = [answer("clip"), [{"generated_text": frames_only, "video_tokens": count(pipe, (3, 9))}]]
    assert pipe([files.clip, clip.frames], text=QUESTION, **GREEDY) == expected
    assert pipe([files.clip, clip.frames], text=QUESTION, batch_size=2, **GREEDY) == expected


def test_frame_rate_of_decoded_frames_reaches_the_model(pipe, calls):
    """A temporal grid has two frames."""
    for fps, seconds in ((1.0, 2.0), (8.0, 0.25)):
        part = {"type": "video", "video": moving_frames(8), "video_metadata": {"fps": fps}}
        pipe(chat(QUESTION, part), **GREEDY)
        assert list(calls[-1].inputs["second_per_grid_ts"]) == [seconds]


def test_text_only(pipe):
    (text,) = generate(pipe, [chat(QUESTION)])
    expected = [{"generated_text": text, "video_tokens": {"total": 0, "entered": 0, "remained": 0}}]
    assert pipe(text=QUESTION, **GREEDY) == expected
    assert pipe({"text": QUESTION}, **GREEDY) == expected
    assert pipe(chat(QUESTION), **GREEDY) == expected
    assert pipe([{"role": "user", "content": QUESTION}], **GREEDY) == expected
    assert pipe(text=[QUESTION, QUESTION], **GREEDY) == [expected, expected]


@pytest.mark.parametrize("form", ["picture", "path", "url"])
def test_image_in_a_chat(pipe, tmp_path, form):
    picture = Image.fromarray(moving_frames(1)[0])
    picture.save(tmp_path / "picture.png")
    part = {"image": picture} if form == "picture" else {form: str(tmp_path / "picture.png")}
    (text,) = generate(pipe, [chat(QUESTION, "image")], images=[picture])
    expected = [{"generated_text": text, "video_tokens": {"total": 0, "entered": 0, "remained": 0}}]
    assert pipe(chat(QUESTION, {"type": "image", **part}), **GREEDY) == expected
    assert text != generate(pipe, [chat(QUESTION)])[0]


def test_image_and_video_in_a_chat(pipe, files):
    """Only the video is compressed and counted. Their order is the chat's."""
    picture, clip = Image.fromarray(moving_frames(1, seed=2)[0]), read_video(files.clip)
    image, video = {"type": "image", "image": picture}, {"type": "video", "path": files.clip}
    media = {"images": [picture], "videos": [clip.frames], "video_metadata": [clip.metadata]}
    for parts, types in (([image, video], ["image", "video"]), ([video, image], ["video", "image"])):
        (text,) = generate(pipe, [chat(QUESTION, *types)], **media)
        answer = pipe(chat(QUESTION, *parts), **GREEDY)
        assert answer == [{"generated_text": text, "video_tokens": count(pipe, (4, 6))}]


# Sampling of frames


@pytest.mark.parametrize(
    ("sampling", "grids", "seconds_per_grid"),
    [
        ({"num_frames": 1}, 1, None),
        ({"num_frames": 2}, 1, 2.0),
        ({"num_frames": 5}, 3, 0.8),
        ({"num_frames": 8}, 4, 0.5),
        ({"num_frames": 100}, 4, 0.5),
        ({"fps": 1}, 1, 2.0),
        ({"fps": 2.0}, 2, 1.0),
        ({}, 4, 0.5),
    ],
    ids=str,
)
def test_sampling(pipe, files, calls, sampling, grids, seconds_per_grid):
    """The requested frames reach the model, two in a grid, with the time between them."""
    ((answer,),) = [pipe(files.clip, text=QUESTION, **sampling, **GREEDY)]
    assert answer["video_tokens"] == count(pipe, (grids, 6))
    assert calls[0].inputs["video_grid_thw"].tolist() == [[grids, 4, 6]]
    if seconds_per_grid is not None:
        assert list(calls[0].inputs["second_per_grid_ts"]) == pytest.approx([seconds_per_grid])
    # The same holds in a chat, and for decoded frames with a known rate.
    metadata = {"fps": 4.0}
    part = {"type": "video", "video": read_video(files.clip).frames, "video_metadata": metadata}
    assert pipe(chat(QUESTION, {"type": "video", "path": files.clip}), **sampling, **GREEDY) == [answer]
    assert pipe(chat(QUESTION, part), **sampling, **GREEDY) == [answer]


def test_default_number_of_frames(pipe, files):
    (answer,) = pipe(files.long, text=QUESTION, **GREEDY)
    assert answer["video_tokens"] == count(pipe, (16, 6))  # 32 frames of 40


# Arguments of `generate`


def test_number_of_new_tokens(pipe, files, calls):
    for length in (1, 7):
        pipe(files.clip, text=QUESTION, max_new_tokens=length, min_new_tokens=length)
        assert calls[-1].outputs.sequences.shape[1] - calls[-1].inputs["input_ids"].shape[1] == length
    pipe(files.clip, text=QUESTION, generate_kwargs={"max_new_tokens": 3, "min_new_tokens": 3})
    assert calls[-1].outputs.sequences.shape[1] - calls[-1].inputs["input_ids"].shape[1] == 3
    pipe(files.clip, text=QUESTION, generation_config=GenerationConfig(max_new_tokens=2, min_new_tokens=2))
    assert calls[-1].outputs.sequences.shape[1] - calls[-1].inputs["input_ids"].shape[1] == 2


def test_beams(pipe, files, calls):
    clip = read_video(files.clip)
    media = {"videos": [clip.frames], "video_metadata": [clip.metadata]}
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    texts = generate(pipe, [chat(QUESTION, "video")], beams, **media)
    answer = pipe(files.clip, text=QUESTION, **beams)
    assert calls[-1].outputs[CACHE].reports[0].num_samples == 3
    assert answer == [{"generated_text": text, "video_tokens": count(pipe, (4, 6))} for text in texts]
    assert len(set(texts)) == 2
    assert pipe(files.clip, text=QUESTION, **{**beams, "num_return_sequences": 1}) == answer[:1]


def test_sampled_sequences(pipe, files, calls):
    """Every input gets that many dictionaries, in a batch too, grouped by input."""
    sampling = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 2}
    clip = read_video(files.clip)
    set_seed(3)
    texts = generate(pipe, [chat(QUESTION, "video")], sampling, videos=[clip.frames], video_metadata=[clip.metadata])
    set_seed(3)
    answer = pipe(files.clip, text=QUESTION, **sampling)
    assert answer == [{"generated_text": text, "video_tokens": count(pipe, (4, 6))} for text in texts]
    assert len(set(texts)) == 2

    answers = pipe([files.clip, files.other, files.clip], text=QUESTION, batch_size=2, **sampling)
    assert [len(answer) for answer in answers] == [2, 2, 2]
    for answer, video in zip(answers, [(4, 6), (3, 9), (4, 6)], strict=True):
        assert [sequence["video_tokens"] for sequence in answer] == [count(pipe, video)] * 2
    batch = pipe.processor.batch_decode(
        calls[-2].outputs.sequences[:, calls[-2].inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert [sequence["generated_text"] for answer in answers[:2] for sequence in answer] == batch


def test_settings_of_the_pipeline(pipe, files, answer):
    """Settings of the pipeline hold for every call that does not set others."""
    made = pipeline(TASK, model=pipe.model, processor=pipe.processor, device="cpu", num_frames=4, **GREEDY)
    ((short,), (long,)) = made(files.clip, text=QUESTION), made(files.clip, text=QUESTION, num_frames=8)
    assert short["video_tokens"] == count(pipe, (2, 6))
    assert [long] == answer()
    assert made(files.clip, text=QUESTION, num_frames=8, max_new_tokens=2) == pipe(
        files.clip, text=QUESTION, max_new_tokens=2, do_sample=False
    )


def test_special_tokens_are_no_text(pipe, files, calls):
    end = pipe.model.generation_config.eos_token_id  # the demo checkpoint's own `suppress_tokens` forbid it
    (answer,) = pipe(
        files.clip, text=QUESTION, prefix_allowed_tokens_fn=lambda *_: [end], suppress_tokens=[0], **GREEDY
    )
    assert calls[0].outputs.sequences[0, -1] == end
    assert answer["generated_text"] == ""


def test_calls_leave_no_trace(folder, pipe, files, answer):
    model = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    before = model.generation_config.to_dict(), model.config.to_dict()
    made = pipeline(TASK, model=model, processor=pipe.processor, device="cpu")
    made(files.clip, text=QUESTION, num_frames=2, num_beams=2, max_new_tokens=3, use_cache=False)
    assert (model.generation_config.to_dict(), model.config.to_dict()) == before
    assert made(files.clip, text=QUESTION, **GREEDY) == answer()


def test_text_streamer(pipe, files, answer, capsys):
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    assert pipe(files.clip, text=QUESTION, streamer=streamer, **GREEDY) == answer()
    assert capsys.readouterr().out == answer()[0]["generated_text"] + "\n"


def test_iterator_streamer(pipe, files, answer):
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = threading.Thread(target=pipe, args=(files.clip, QUESTION), kwargs={"streamer": streamer, **GREEDY})
    thread.start()
    assert "".join(streamer) == answer()[0]["generated_text"]
    thread.join()


# Batches


def test_batch_equals_singles(pipe, files, calls):
    """Prompts of different length, with two videos, one or none; the last batch is not full."""
    clip, other = ({"type": "video", "path": path} for path in (files.clip, files.other))
    image = {"type": "image", "image": Image.fromarray(moving_frames(1, seed=2)[0])}
    chats = [
        chat(QUESTION, clip),
        chat(OTHER_QUESTION, other, clip),
        chat(QUESTION),
        chat(OTHER_QUESTION, image, other),
        chat("Why?", other),
    ]
    singles = pipe(chats, batch_size=1, **GREEDY)
    assert len(calls) == 5
    batches = pipe(chats, batch_size=2, **GREEDY)
    assert [len(call.inputs["input_ids"]) for call in calls[5:]] == [2, 2, 1]
    assert batches == singles
    videos = [[(4, 6)], [(3, 9), (4, 6)], [], [(3, 9)], [(3, 9)]]
    assert [answer["video_tokens"] for (answer,) in batches] == [count(pipe, *grids) for grids in videos]
    assert pipe(chats, batch_size=5, **GREEDY) == singles


def test_batch_with_beams_equals_singles(pipe, files):
    beams = {**GREEDY, "num_beams": 2, "num_return_sequences": 2}
    questions = [QUESTION, OTHER_QUESTION]
    singles = pipe([files.clip, files.other], text=questions, **beams)
    assert pipe([files.clip, files.other], text=questions, batch_size=2, **beams) == singles
    assert [len(answer) for answer in singles] == [2, 2]


def test_batch_of_a_generator(pipe, files, answer):
    items = ({"video": path, "text": QUESTION} for path in (files.clip, files.other, files.clip))
    assert list(pipe(items, batch_size=2, **GREEDY)) == [answer("clip"), answer("other"), answer("clip")]


# Counts, and models that do not compress


@pytest.mark.parametrize("setting", [{"retention_ratio": 0.5}, {"expansion": 1.0}, {"pruning_layer": 14}], ids=str)
def test_counts_follow_the_settings(folder, files, pipe, setting):
    model = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(folder, **setting)
    made = pipeline(TASK, model=model, processor=pipe.processor, device="cpu")
    (answer,) = made(files.clip, text=QUESTION, **GREEDY)
    budget = math.ceil(6 * model.config.retention_ratio * model.config.expansion)
    entered = 4 * budget
    remained = math.ceil(entered * model.config.llm_retention_ratio)
    assert answer["video_tokens"] == {"total": 24, "entered": entered, "remained": remained}
    assert {"total": 24, "entered": entered, "remained": remained} != count(pipe, (4, 6))


def test_settings_and_counts_of_a_call(pipe, files, answer):
    ((without,), (expected,)) = pipe(files.clip, text=QUESTION, use_cache=False, **GREEDY), answer()
    assert without == expected
    (off,) = pipe(files.clip, text=QUESTION, retention_ratio=1.0, **GREEDY)
    assert off["video_tokens"] == {"total": 24, "entered": 24, "remained": 24}
    (half,) = pipe(files.clip, text=QUESTION, retention_ratio=0.5, **GREEDY)
    assert half["video_tokens"]["entered"] == 4 * math.ceil(6 * 0.5 * 1.25) > expected["video_tokens"]["entered"]
    assert answer()[0] == expected


def test_upstream_model(upstream, files):
    clip = read_video(files.clip)
    (text,) = generate(upstream, [chat(QUESTION, "video")], videos=[clip.frames], video_metadata=[clip.metadata])
    expected = {"generated_text": text, "video_tokens": {"total": 24, "entered": 24, "remained": 24}}
    assert type(upstream) is VideoTextToTextPipeline
    assert upstream(files.clip, text=QUESTION, **GREEDY) == [expected]
    sampling = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    answers = upstream([files.clip, files.other], text=QUESTION, batch_size=2, **sampling)
    totals = [[sequence["video_tokens"]["entered"] for sequence in answer] for answer in answers]
    assert totals == [[24, 24], [27, 27]]


def test_ratio_one_is_the_upstream_model(upstream, upstream_folder, files):
    model = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(upstream_folder, retention_ratio=1.0)
    made = pipeline(TASK, model=model, processor=upstream.processor, device="cpu")
    questions = {"text": [QUESTION, OTHER_QUESTION], "batch_size": 2, **GREEDY}
    answers = made([files.clip, files.other], **questions)
    assert answers == upstream([files.clip, files.other], **questions)
    assert answers[0][0]["video_tokens"] == {"total": 24, "entered": 24, "remained": 24}


# Where the model comes from


def test_upstream_folder_by_name(upstream, upstream_folder, files):
    """The task is known for every model, without `trust_remote_code`."""
    made = pipeline(TASK, model=str(upstream_folder), device="cpu")
    assert type(made) is VideoTextToTextPipeline
    assert type(made.model) is Qwen2_5_VLForConditionalGeneration
    assert made(files.clip, text=QUESTION, **GREEDY) == upstream(files.clip, text=QUESTION, **GREEDY)


def test_flashvid_folder_by_name(folder, files, answer):
    made = pipeline(TASK, model=str(folder), pipeline_class=VideoTextToTextPipeline, device="cpu")
    assert type(made.model) is FlashVIDQwen2_5_VLForConditionalGeneration
    assert made(files.clip, text=QUESTION, **GREEDY) == answer()


REMOTE_PIPELINE = """
import json
from pathlib import Path

from checkpoints import moving_frames
from transformers import pipeline

folder, clip, other, out = arguments
settings = {"max_new_tokens": 8, "do_sample": False}
question = "What moves?"
chat = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": question}]}]
frames = {"type": "video", "video": moving_frames(8), "video_metadata": {"fps": 4.0}}
answers = {}
for task in ("video-text-to-text", None):
    pipe = pipeline(task, model=folder, trust_remote_code=True, device="cpu")
    for part in (pipe, pipe.model):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    answers[str(task)] = {
        "file": pipe(Path(clip), text=question, **settings),
        "chat": pipe(chat, **settings),
        "frames": pipe([{"role": "user", "content": [frames, *chat[0]["content"][1:]]}], **settings),
        "batch": pipe([clip, other], text=question, batch_size=2, **settings),
        "sampling": pipe(clip, text=question, num_frames=4, **settings),
    }
    try:
        pipe("missing.mp4", text=question)
    except ValueError as error:
        answers[str(task)]["missing"] = str(error)
Path(out).write_text(json.dumps(answers))
"""


def test_remote_code(folder, files, tmp_path, pipe, answer):
    """Without the package, with and without the name of the task, the answers equal those of the package."""
    run_program(REMOTE_PIPELINE, folder, files.clip, files.other, tmp_path / "answers.json", home=tmp_path / "home")
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert list(answers) == [TASK, "None"]
    frames = {"type": "video", "video": moving_frames(8), "video_metadata": {"fps": 4.0}}
    for given in answers.values():
        given.update({name: untimed(answer) for name, answer in given.items() if name != "missing"})
        assert given["file"] == given["chat"] == answer()
        assert given["frames"] == pipe(chat(QUESTION, frames), **GREEDY)
        assert given["batch"] == [answer("clip"), answer("other")]
        assert given["sampling"] == pipe(files.clip, text=QUESTION, num_frames=4, **GREEDY)
        assert "'missing.mp4' does not exist" in given["missing"]


# Bad input

BAD = {
    "missing file": (lambda f: {"videos": f.folder / "missing.mp4", "text": "?"}, "missing.mp4' does not exist"),
    "one missing of two": (lambda f: {"videos": [f.clip, "missing.mp4"], "text": "?"}, "'missing.mp4' does not exist"),
    "folder": (lambda f: {"videos": str(f.folder), "text": "?"}, "is a directory"),
    "empty file": (lambda f: {"videos": f.empty, "text": "?"}, "empty.mp4' is empty"),
    "truncated file": (lambda f: {"videos": f.truncated, "text": "?"}, "truncated.mp4' cannot be read"),
    "text file": (lambda f: {"videos": f.text, "text": "?"}, "text.mp4' cannot be read"),
    "empty path": (lambda f: {"videos": "", "text": "?"}, "'' does not exist"),
    "missing file in a chat": (
        lambda f: {"videos": chat("?", {"type": "video", "path": "missing.mp4"})},
        "'missing.mp4' does not exist",
    ),
    "num_frames=0": (lambda f: {"videos": f.clip, "text": "?", "num_frames": 0}, "`num_frames` must be .* got 0"),
    "num_frames=0, frames": (
        lambda f: {"videos": moving_frames(), "text": "?", "num_frames": 0},
        "`num_frames` must be .* got 0",
    ),
    "fps=0": (lambda f: {"videos": f.clip, "text": "?", "fps": 0}, "`fps` must be .* got 0"),
    "num_frames and fps": (lambda f: {"videos": f.clip, "text": "?", "num_frames": 2, "fps": 1}, "`num_frames`.*`fps`"),
    "more questions than videos": (lambda f: {"videos": [f.clip], "text": ["?", "!"]}, "2 questions and .* 1 videos"),
    "more videos than questions": (
        lambda f: {"videos": [f.clip, f.clip, f.other], "text": ["?", "!"]},
        "2 questions and .* 3 videos",
    ),
    "nothing": (lambda f: {}, "`videos` and `text` are both None"),
    "unknown argument": (lambda f: {"videos": f.clip, "text": "?", "max_tokens": 3}, "max_tokens"),
    "argument given twice": (
        lambda f: {"videos": f.clip, "text": "?", "num_beams": 2, "generate_kwargs": {"num_beams": 3}},
        "`num_beams` is given twice",
    ),
    "video without source": (lambda f: {"videos": chat("?", "video")}, "type 'video' but no video"),
    "image without source": (lambda f: {"videos": chat("?", "image")}, "type 'image' but no image"),
    "empty list": (lambda f: {"videos": []}, "empty"),
    "empty list of questions": (lambda f: {"text": []}, "empty"),
    "empty list of videos": (lambda f: {"videos": [], "text": "?"}, "video"),
    "empty lists": (lambda f: {"videos": [], "text": []}, "empty"),
    "video and no questions": (lambda f: {"videos": f.clip, "text": []}, "empty"),
    "number": (lambda f: {"videos": 5, "text": "?"}, "got int"),
    "file without question": (lambda f: {"videos": f.clip}, "`text` is None and `videos` is .*pass the question"),
    "path without question": (lambda f: {"videos": str(f.clip)}, "`text` is None and `videos` is .*pass the question"),
    "files without question": (lambda f: {"videos": [f.clip, f.other]}, "`text` is None and `videos` is"),
    "video beside a chat": (
        lambda f: {"videos": f.clip, "text": chat("?", "video")},
        "a question or a list of questions",
    ),
    "question that is no text": (lambda f: {"videos": f.clip, "text": [5]}, "a question or a list of questions"),
    "unknown part": (
        lambda f: {"videos": chat("?", {"type": "vidoe", "path": f.clip})},
        "type 'vidoe'.*'video', 'image'",
    ),
    "part without type": (lambda f: {"videos": chat("?", {"path": f.clip})}, r"type None.*\['path'\]"),
    "unknown key": (lambda f: {"videos": {"videos": f.clip, "text": "?"}}, r"keys \['text', 'videos'\]"),
    "dictionary without question": (lambda f: {"videos": {"video": f.clip}}, "'video' and 'text'"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(pipe, files, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"max_new_tokens": 1, **arguments(files)})


def test_a_call_adds_to_the_settings_of_the_pipeline(pipe, files):
    made = pipeline(
        TASK, model=pipe.model, processor=pipe.processor, num_frames=4, generate_kwargs={"max_new_tokens": 2}
    )
    (answer,) = made(files.clip, text=QUESTION, do_sample=False)
    assert answer == pipe(files.clip, text=QUESTION, do_sample=False, num_frames=4, max_new_tokens=2)[0]
    # A way of sampling that a call gives replaces the other one.
    (answer,) = made(files.clip, text=QUESTION, do_sample=False, fps=2)
    assert answer == pipe(files.clip, text=QUESTION, do_sample=False, fps=2, max_new_tokens=2)[0]
