"""Settings beside a video or an image in a chat, in the pipeline and `serve`: honoured, or an error names them."""

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CLIP
from PIL import Image
from test_pipeline import write_video

from flashvid_hf import read_video
from flashvid_hf.serving.fields import check_fields
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.tiny_models import build_processor
from flashvid_hf.video.message_parts import check_sizes, read_image_part, read_video_part
from flashvid_hf.video.pipeline_flashvid import VideoTextToTextPipeline, media_arguments

QWEN = ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"]
LLAVA = ["llava_onevision", "llava_video"]
SLOW = CLIP  # replaced by `slow_clip`
FPS, TOTAL = 4.0, 32  # of the video of these tests, which has 252 x 336 pixels


@pytest.fixture(scope="module", autouse=True)
def slow_clip(tmp_path_factory):
    """The clip at four frames a second."""
    frames = read_video(CLIP, num_frames=TOTAL).frames
    globals()["SLOW"] = write_video(tmp_path_factory.mktemp("slow") / "slow.mp4", frames)


@pytest.fixture(scope="module")
def processors() -> dict[str, Any]:
    return {family: build_processor(family) for family in QWEN + LLAVA}


def video(**settings: Any) -> dict[str, Any]:
    return {"type": "video", "video": str(SLOW), **settings}


def read(part: dict[str, Any], processor: Any = None, **sampling: Any) -> Any:
    """As the pipeline reads it."""
    ask = SimpleNamespace(processor=processor)
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    (clip,) = VideoTextToTextPipeline.preprocess(ask, chat, **sampling)["request"].clips
    return clip


@pytest.mark.parametrize(
    "settings, sampling, indices",
    [
        ({"nframes": 2}, {"num_frames": 7}, [0, 31]),
        ({"num_frames": 2}, {"fps": 1.0}, [0, 31]),
        ({"fps": 0.5}, {"num_frames": 7}, [0, 8, 16, 24]),
        ({"fps": 0.5, "max_frames": 2}, {}, [0, 16]),
        ({"fps": 0.5, "min_frames": 8}, {}, [*range(0, 32, 4)]),
        ({"max_frames": 2}, {"num_frames": 7}, [0, 31]),
        ({"video_start": 1.0, "video_end": 2.0}, {}, [4, 5, 6, 7, 8]),
        ({"video_start": 7.0}, {"num_frames": 2}, [28, 31]),
        ({"video_end": 1, "fps": 2}, {"num_frames": 7}, [0, 2]),
        ({"video_start": 0.1, "video_end": 0.3}, {}, [1]),
        ({"video_start": 7.75, "video_end": 99}, {}, [31]),
        ({"fps": None, "video_end": None, "id": 3}, {"num_frames": 2}, [0, 31]),
    ],
)
def test_frames(settings, sampling, indices):
    clip = read(video(**settings), **sampling)
    assert clip.metadata.frames_indices == indices
    assert np.array_equal(clip.frames, read_video(SLOW, num_frames=TOTAL).frames[indices])


def test_a_part_of_a_video_keeps_its_times():
    """As qwen-vl-utils has it: times of the source, and the number of frames of the part."""
    metadata = read(video(video_start=2.0, video_end=3.75, nframes=4)).metadata
    assert metadata.timestamps == [2.0, 2.5, 3.25, 3.75] and metadata.fps == FPS
    assert (metadata.total_num_frames, metadata.duration, metadata.sampled_fps) == (8, 2.0, 2.0)


def test_times_reach_the_models(processors):
    """Qwen3-VL's prompt has seconds of the source, Qwen2.5-VL's positions the rate of the chosen frames."""
    chat = [{"role": "user", "content": [video(video_start=2.0, video_end=3.75, nframes=4)]}]
    prepare = {"tokenize": True, "return_dict": True}
    ids = processors["qwen3_vl"].apply_chat_template(chat, **prepare)["input_ids"][0]
    prompt = processors["qwen3_vl"].decode(ids)
    assert "<2.2 seconds>" in prompt and "<3.5 seconds>" in prompt
    assert list(processors["qwen2_5_vl"].apply_chat_template(chat, **prepare)["second_per_grid_ts"]) == [1.0]


def test_a_sample_of_frames_is_cut_by_its_own_times():
    frames = read_video(CLIP, num_frames=TOTAL).frames[8:24:2]
    described = {"fps": FPS, "total_num_frames": TOTAL, "frames_indices": [*range(8, 24, 2)]}
    clip = read({**video(video_start=3.0, video_end=4.0, video_metadata=described), "video": frames})
    assert clip.metadata.frames_indices == [12, 14, 16] and len(clip.frames) == 3
    assert clip.metadata.sampled_fps == 3 / 12 * FPS


def test_pictures_are_one_video(tmp_path):
    frames = read_video(CLIP, num_frames=4).frames
    names = [tmp_path / f"frame #{i}.png" for i in range(4)]
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(name)
    data = "data:image/png;base64," + base64.b64encode(names[3].read_bytes()).decode()
    sources = [str(names[0]), names[1], names[2].as_uri(), data]
    clip = read({"type": "video", "video": sources, "sample_fps": 2.0})
    assert np.array_equal(clip.frames, frames) and clip.metadata.timestamps == [0, 0.5, 1.0, 1.5]
    assert np.array_equal(read({"type": "video", "video": sources, "nframes": 2}).frames, frames[[0, 3]])
    with pytest.raises(ValueError, match="frame 9.png' cannot be read: it does not exist"):
        read({"type": "video", "video": [*sources, "frame 9.png"]})


@pytest.mark.parametrize("field", ["video", "path", "url"])
@pytest.mark.parametrize("kind", ["path", "url", "bytes", "open file", "row"])
def test_a_rate_beside_a_file_is_named(field, kind):
    content = CLIP.read_bytes()
    sources = {"path": CLIP, "url": CLIP.as_uri(), "bytes": content, "open file": io.BytesIO(content)}
    part = {"type": "video", field: {**sources, "row": {"path": "a.mp4", "bytes": content}}[kind]}
    with pytest.raises(ValueError, match=r"^`sample_fps` is 2.0: .*Leave it out; `fps` chooses frames"):
        read({**part, "sample_fps": 2.0})
    part = {"type": "video", field: CLIP.as_uri(), "sample_fps": 2.0}
    with pytest.raises(ValueError, match=r"^`sample_fps` is 2.0: "):
        serve(part)


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize(
    "settings, num_frames, size",  # in tokens; the clip's own size is 9 x 12 of 28 pixels, 8 x 10 of 32
    [
        ({"max_pixels": 40}, 4, (5, 7)),
        ({"min_pixels": 150}, 4, (11, 15)),
        ({"total_pixels": 80}, 4, (5, 7)),
        ({"resized_height": 3, "resized_width": 5}, 3, (3, 5)),
        ({"resized_height": 5, "resized_width": 3}, 2, (5, 3)),
        ({"max_pixels": 200}, 4, None),
    ],
)
def test_sizes_of_frames(processors, family, settings, num_frames, size):
    """The processor leaves what they became."""
    processor = processors[family]
    unit = processor.video_processor.patch_size * 2
    sides = ("resized_height", "resized_width")
    given = {name: value * (unit if name in sides else unit**2) for name, value in settings.items()}
    clip = read(video(nframes=num_frames, **given), processor)
    height, width = (side / unit for side in clip.frames.shape[1:3])
    assert size is None or unit == 32 or (height, width) == size
    if "max_pixels" in settings or "total_pixels" in settings:
        assert height * width <= next(iter(settings.values())) * (2 / num_frames if "total_pixels" in settings else 1)
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])
    inputs = processor(text=[prompt], **media_arguments([clip], [], torch.device("cpu"), processor))
    check_sizes(inputs, [clip], [], processor)
    assert (torch.as_tensor(inputs["video_grid_thw"])[0, 1:] * unit // 2).tolist() == [height * unit, width * unit]


@pytest.mark.parametrize("family", QWEN)
def test_sizes_of_images(processors, family, tmp_path):
    processor, unit = processors[family], processors[family].image_processor.patch_size * 2
    Image.new("RGB", (200, 100)).save(tmp_path / "a b#.png")
    part = {"type": "image", "image": (tmp_path / "a b#.png").as_uri()}
    for settings, sides in (
        ({"resized_height": 2 * unit + 3, "resized_width": 4 * unit}, [2 * unit, 4 * unit]),
        ({"max_pixels": 8 * unit**2}, [2 * unit, 4 * unit]),
    ):
        picture = read_image_part({**part, **settings}, processor)
        assert [picture.image.height, picture.image.width] == sides
        chat = [{"role": "user", "content": [{**part, **settings}, part]}]
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
        assert (torch.as_tensor(inputs["image_grid_thw"])[0, 1:] * unit // 2).tolist() == sides


def test_a_second_resizing_is_an_error(processors):
    processor = processors["qwen2_5_vl"]
    clip = read(video(nframes=2, max_pixels=31360), processor)
    grid = [[1, clip.frames.shape[1] // 14, clip.frames.shape[2] // 14 + 2]]
    with pytest.raises(ValueError, match="`max_pixels` beside a video: it became .* and the model's processor made"):
        check_sizes({"video_grid_thw": grid}, [clip], [], processor)


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels", "total_pixels", "resized_height"])
@pytest.mark.parametrize("family", LLAVA)
def test_llava_has_one_size(processors, family, name):
    settings = {name: 200, **({"resized_width": 200} if name == "resized_height" else {})}
    with pytest.raises(ValueError, match=f"`{name}` .200.*gives every frame the same size. Leave"):
        read(video(**settings), processors[family])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"nframes": 0}, "`nframes` must be an integer >= 1, got 0"),
        ({"nframes": "4"}, "`nframes` must be an integer >= 1, got '4'"),
        ({"max_frames": True}, "`max_frames` must be an integer >= 1, got True"),
        ({"fps": -1}, "`fps` must be a number > 0 .* got -1"),
        ({"fps": "2"}, "`fps` must be a number > 0 .* got '2'"),
        ({"video_start": -1}, "`video_start` must be a number >= 0 .* got -1"),
        ({"video_end": float("nan")}, "`video_end` must be a number >= 0 .* got nan"),
        ({"video_start": 3, "video_end": 2}, "`video_start` is 3 and `video_end` 2"),
        ({"video_start": 100}, "no frame lies between `video_start` 100 .* 0.00 to 7.75 s"),
        ({"nframes": 4, "fps": 2}, r"`nframes` \(4\) and `fps` \(2\) both"),
        ({"nframes": 4, "num_frames": 4}, "`num_frames`.*`nframes`"),
        ({"nframes": 4, "max_frames": 9}, "`nframes`.*`max_frames`"),
        ({"min_frames": 9, "max_frames": 4}, "`min_frames` is 9 and `max_frames` 4"),
        ({"resized_height": 56}, "`resized_height` is 56 without `resized_width`"),
        ({"resized_height": 56, "resized_width": 56, "max_pixels": 9}, "`resized_height`.*`max_pixels`"),
        ({"max_pixels": 10**9}, None),
        ({"min_pixels": 10**9}, "`min_pixels` .*processor takes from .* to .* pixels for each of 32 frames"),
        ({"max_pixels": 100}, "`max_pixels` .*processor takes from"),
        ({"video_fps": 2}, "`video_fps` beside a video is 2: no such setting is known. Choose from num_frames"),
        ({"path": str(CLIP)}, "has the video twice, under video and path"),
        ({"video_metadata": {"fps": 2}}, "`video_metadata` describes decoded frames"),
    ],
)
def test_what_cannot_be_honoured_is_named(processors, settings, message):
    if message is None:  # a bound that nothing reaches
        assert read(video(**settings), processors["qwen2_5_vl"]).frames.shape == (32, 252, 336, 3)
        return
    with pytest.raises(ValueError, match=message):
        read(video(**settings), processors["qwen2_5_vl"])


def test_unknown_keys_of_images(processors):
    part = {"type": "image", "image": Image.new("RGB", (8, 8))}
    for settings in ({"total_pixels": 3136}, {"fps": 2}, {"detail": "low"}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"`{name}` beside an image"):
            read_image_part({**part, **settings}, processors["qwen2_5_vl"])


def test_decoded_frames_need_a_rate():
    frames = np.zeros((4, 28, 28, 3), np.uint8)
    for settings in ({"video_start": 1}, {"video_end": 1}, {"fps": 1}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"`{name}` needs the source's frame rate"):
            read({"type": "video", "video": frames, **settings})


# The server


def serve(part: Any, processor: Any = None, field: str = "messages", files: str | None = "/", **kwargs: Any):
    reader = RequestReader("model", 4, files and Path(files), processor)
    body = reader.read({field: [{"role": "user", "content": [part]}], "chat_template_kwargs": kwargs}, field)
    return body[field][0]["content"][0][part["type"] if part["type"] != "input_image" else "image_url"]["url"]


@pytest.mark.parametrize("field", ["messages", "input"])
def test_settings_of_a_request(processors, field):
    processor = processors["qwen2_5_vl"]
    for settings in (
        {"nframes": 2},
        {"fps": 0.5},
        {"video_start": 1, "video_end": 2},
        {"nframes": 2, "max_pixels": 31360},
    ):
        expected = read_video_part(video(**settings), {"num_frames": 4}, processor)
        beside = {"type": "video_url", "video_url": {"url": str(SLOW)}, **settings}
        inside = {"type": "video_url", "video_url": {"url": str(SLOW), **settings}}
        for part in (beside, inside):
            clip = (
                serve(part, processor, field, num_frames=3) if "nframes" in settings else serve(part, processor, field)
            )
            assert clip.metadata == expected.metadata and np.array_equal(clip.frames, expected.frames)


@pytest.mark.parametrize(
    "part, message",
    [
        ({"type": "video_url", "video_url": {"url": str(CLIP), "frames": 3}}, "`frames` beside a video is 3"),
        (
            {"type": "video_url", "video_url": {"url": str(CLIP), "fps": 3}, "fps": 2},
            "`fps` stands inside .* and beside",
        ),
        ({"type": "video_url", "video_url": {"url": str(CLIP)}, "detail": "low"}, "`detail` beside a video is 'low'"),
        ({"type": "video_url", "video_url": {"url": [str(CLIP), 3]}}, "must be an object with a `url`"),
        ({"type": "image_url", "image_url": {"url": ["a.png"]}}, "must be an object with a `url`"),
    ],
)
def test_parts_of_a_request_that_are_refused(part, message):
    with pytest.raises(ValueError, match=message):
        serve(part)


def test_frames_of_a_request(tmp_path):
    """Each of them is subject to `allowed_local_media_path`."""
    Image.new("RGB", (28, 28), "red").save(tmp_path / "a.png")
    data = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    part = {"type": "video_url", "video_url": {"url": [data, data, data]}}
    assert serve(part, files=None, num_frames=2).frames.shape == (2, 28, 28, 3)
    part["video_url"]["url"][1] = str(tmp_path / "a.png")
    assert len(serve(part).frames) == 3
    for local in (str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri(), "FILE:///etc/hosts"):
        part["video_url"]["url"][1] = local
        with pytest.raises(ValueError, match="reads no files of its own machine"):
            serve(part, files=None)
    picture = {"type": "input_image", "image_url": data, "detail": "auto"}
    assert serve(picture, field="input", files=None).image.size == (28, 28)


NEUTRAL = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "presence_penalty": 0.0,
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "store": False,
    "text": {"format": {"type": "text"}, "verbosity": None},
    "reasoning": {"effort": None},
    "user": "me",
    "metadata": {"a": "b"},
    "service_tier": None,
    "stop": [],
}


def test_fields_that_change_nothing_pass():
    assert check_fields({"messages": [], "temperature": 0.5, **NEUTRAL}, False) == {"messages": [], "temperature": 0.5}
    assert check_fields({"max_completion_tokens": 3}, False) == {"max_tokens": 3}
    assert check_fields({"tools": [{}]}, True) == {"tools": [{}]}


@pytest.mark.parametrize(
    "field, value",
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("presence_penalty", 0.5),
        ("response_format", {"type": "json_object"}),
        ("text", {"format": {"type": "json_schema"}}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("audio", {}),
        ("modalities", ["audio"]),
        ("store", True),
        ("previous_response_id", "resp_1"),
        ("reasoning_effort", "high"),
        ("stream_options", [{"include_usage": True}]),
        ("stream_options.more", 1),
        ("stream_options.include_usage", 1),
        ("stream_options.include_obfuscation", True),
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("seed", "one"),
        ("stop", [3]),
        ("a_field_of_tomorrow", 1),
    ],
)
def test_fields_that_are_not_honoured_are_refused_by_name(field, value):
    name, _, inner = field.partition(".")
    with pytest.raises(ValueError, match=f"`{re.escape(field)}` is "):
        check_fields({"messages": [], name: {inner: value} if inner else value}, False)
