"""The pipeline on a demo model of every family: files, frames, chats and batches, against calls of `generate`."""

import pytest
import torch
from checkpoints import CLIP, build_pipeline, count_clip_tokens, untimed
from PIL import Image

from flashvid_hf import VideoTextToTextPipeline, read_video
from flashvid_hf.families import FAMILIES_BY_NAME
from flashvid_hf.video.pipeline_flashvid import media_arguments

QUESTION, OTHER_QUESTION = "What moves?", "Where to, and how fast does it go?"
GREEDY = {"max_new_tokens": 8, "do_sample": False}
LONG, SHORT = (read_video(CLIP, num_frames=number) for number in (9, 4))
NO_TOKENS = {"total": 0, "entered": 0, "remained": 0}
PICTURE = Image.fromarray(LONG.frames[0])


@pytest.fixture(scope="module", params=FAMILIES_BY_NAME)
def pipe(request, tmp_path_factory) -> VideoTextToTextPipeline:
    return build_pipeline(tmp_path_factory, request.param)


@pytest.fixture(autouse=True)
def no_seconds(monkeypatch):
    """Remove the times, so that answers can be compared; tests/test_pipeline_stages.py tests the times."""
    postprocess = VideoTextToTextPipeline.postprocess
    monkeypatch.setattr(VideoTextToTextPipeline, "postprocess", lambda *arguments: untimed(postprocess(*arguments)))


def chat(question: str, *media) -> list[dict]:
    """A chat of one message: clips and pictures, followed by the question."""
    parts = [
        {"type": "image", "image": medium}
        if isinstance(medium, Image.Image)
        else {"type": "video", "video": medium.frames, "video_metadata": medium.metadata}
        for medium in media
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def generate(pipe, question: str, *media) -> str:
    """The answer from the processor and `generate`, without the pipeline."""
    types = [{"type": part["type"]} for part in chat(question, *media)[0]["content"][:-1]]
    messages = [{"role": "user", "content": [*types, {"type": "text", "text": question}]}]
    prompt = pipe.processor.apply_chat_template(messages, add_generation_prompt=True)
    clips = [medium for medium in media if not isinstance(medium, Image.Image)]
    images = [medium for medium in media if isinstance(medium, Image.Image)]
    inputs = pipe.processor(
        text=[prompt],
        images=images or None,
        videos=[clip.frames for clip in clips] or None,
        **({"video_metadata": [clip.metadata for clip in clips], "do_sample_frames": False} if clips else {}),
        return_tensors="pt",
    )
    sequences = pipe.model.generate(**inputs, **GREEDY)
    return pipe.processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def expected(pipe, question: str, *media) -> list[dict]:
    lengths = [len(medium.frames) for medium in media if not isinstance(medium, Image.Image)]
    counts = count_clip_tokens(pipe.model.config, *lengths)
    return [{"generated_text": generate(pipe, question, *media), "video_tokens": counts}]


@pytest.mark.parametrize("num_frames", [9, 4, 2])
def test_file(pipe, num_frames):
    clip = read_video(CLIP, num_frames=num_frames)
    answer = expected(pipe, QUESTION, clip)
    assert pipe(CLIP, text=QUESTION, num_frames=num_frames, **GREEDY) == answer
    message = {"role": "user", "content": [{"type": "video", "path": str(CLIP)}, {"type": "text", "text": QUESTION}]}
    assert pipe([message], num_frames=num_frames, **GREEDY) == answer


def test_one_frame(pipe):
    """Qwen3-VL's processor refuses one frame, so the pipeline gives it twice, at the same time."""
    clip = read_video(CLIP, num_frames=1)
    seen = clip
    if pipe.model.config.model_type.startswith("flashvid_qwen3"):
        metadata = {**clip.metadata, "frames_indices": [0, 0]}
        seen = read_video(clip.frames.repeat(2, axis=0), video_metadata=metadata)
    answer = expected(pipe, QUESTION, seen)
    assert answer[0]["video_tokens"] == count_clip_tokens(pipe.model.config, 1)
    assert pipe(CLIP, text=QUESTION, num_frames=1, **GREEDY) == answer
    assert pipe(CLIP, text=QUESTION, fps=0.01, **GREEDY) == answer
    assert pipe(chat(QUESTION, clip), **GREEDY) == answer


def test_processors_do_not_change_the_metadata_of_a_clip(pipe):
    """Qwen3-VL's completes the list of indices in place."""
    clip = read_video(CLIP, num_frames=3)
    indices = list(clip.metadata.frames_indices)
    media = media_arguments([clip], [], torch.device("cpu"), pipe.processor)
    pipe.processor(text=[pipe.processor.video_token], **media)
    assert clip.metadata.frames_indices == indices


def test_default_number_of_frames(pipe):
    (answer,) = pipe(CLIP, text=QUESTION, **GREEDY)
    assert answer["video_tokens"] == count_clip_tokens(pipe.model.config, 32)


def test_decoded_frames(pipe):
    assert pipe(chat(QUESTION, SHORT), **GREEDY) == expected(pipe, QUESTION, SHORT)
    answer = pipe(SHORT.frames, text=QUESTION, **GREEDY)
    assert answer[0]["video_tokens"] == count_clip_tokens(pipe.model.config, 4)
    assert pipe([Image.fromarray(frame) for frame in SHORT.frames], text=QUESTION, **GREEDY) == answer


@pytest.mark.parametrize("as_string", [True, False])
def test_text_only(pipe, as_string):
    """Templates that know only parts must not lose a question."""
    content = QUESTION if as_string else [{"type": "text", "text": QUESTION}]
    answer = [{"generated_text": generate(pipe, QUESTION), "video_tokens": NO_TOKENS}]
    assert pipe([{"role": "user", "content": content}], **GREEDY) == answer
    assert pipe(text=QUESTION, **GREEDY) == answer
    assert generate(pipe, OTHER_QUESTION) != answer[0]["generated_text"]


def test_image_and_video_in_a_chat(pipe):
    answer = expected(pipe, QUESTION, PICTURE, SHORT)
    assert pipe(chat(QUESTION, PICTURE, SHORT), **GREEDY) == answer
    assert answer[0]["generated_text"] != generate(pipe, QUESTION, SHORT)
    nothing = {"generated_text": generate(pipe, QUESTION, PICTURE), "video_tokens": NO_TOKENS}
    assert pipe(chat(QUESTION, PICTURE), **GREEDY) == [nothing]


def test_videos_of_different_length_in_a_chat(pipe):
    """Each video is compressed separately; their order is that of the chat."""
    both, swapped = (pipe(chat(QUESTION, *clips), **GREEDY)[0] for clips in ((LONG, SHORT), (SHORT, LONG)))
    assert both["video_tokens"] == swapped["video_tokens"] == count_clip_tokens(pipe.model.config, 9, 4)
    assert both["generated_text"] != swapped["generated_text"]


def test_videos_of_different_length_in_a_batch(pipe):
    """Prompts with a long video, a short one, both, none, and a picture get the same answers together as alone."""
    chats = [
        chat(QUESTION, LONG),
        chat(OTHER_QUESTION, SHORT),
        chat("Why?", SHORT, LONG),
        chat(QUESTION),
        chat(QUESTION, PICTURE, SHORT),
    ]
    alone = pipe(chats, batch_size=1, **GREEDY)
    assert alone[:2] == [expected(pipe, QUESTION, LONG), expected(pipe, OTHER_QUESTION, SHORT)]
    assert len({answer["generated_text"] for (answer,) in alone}) == len(chats)
    assert pipe(chats, batch_size=2, **GREEDY) == alone
    assert pipe(chats, batch_size=5, **GREEDY) == alone
    beams = {**GREEDY, "num_beams": 2, "num_return_sequences": 2}
    assert pipe(chats[:3], batch_size=3, **beams) == pipe(chats[:3], **beams)
