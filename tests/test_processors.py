"""The processors of the folders read videos: upstream's way to prepare a chat, without torchcodec."""

import numpy as np
import pytest
import torch
from checkpoints import CLIP as LONG
from checkpoints import assert_same, upstream_class, video_inputs
from PIL import Image
from transformers import AutoProcessor

from flashvid_hf import FAMILIES, FlashVIDProcessor, read_video
from flashvid_hf.tiny_models import build_processor
from flashvid_hf.video.batching import convert_to_tensors
from flashvid_hf.video.pipeline_flashvid import media_arguments

CLIP = LONG.parent / "moving_shapes.mp4"  # 16 frames, two a second
PREPARE = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(family):
    return build_processor(family)


@pytest.fixture(scope="module")
def upstream(family):
    made = build_processor(family)
    if family.has_upstream_checkpoints:
        made.__class__ = upstream_class(type(made))
    return made


def chat(*videos: object, text: str = "What moves?") -> list:
    parts = [video if isinstance(video, dict) else {"type": "video", "path": video} for video in videos]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def expect(upstream, *clips, text="What moves?"):
    """What upstream makes of clips that `read_video` has read."""
    prompt = upstream.apply_chat_template(
        chat(*[{"type": "video"}] * len(clips), text=text), add_generation_prompt=True
    )
    media = media_arguments(list(clips), [], torch.device("cpu"), upstream)
    return dict(convert_to_tensors(upstream(text=[prompt], **media), "pt"))


@pytest.mark.parametrize("sampling", [{"num_frames": 4}, {"fps": 1.0}, {"do_sample_frames": False}, {}])
def test_paths_in_messages(processor, upstream, sampling):
    """Without sampling all frames are taken, as upstream does."""
    messages = chat(str(CLIP))
    read = {name: value for name, value in sampling.items() if name != "do_sample_frames"} or {"num_frames": 16}
    expected = expect(upstream, read_video(CLIP, **read))
    assert_same(dict(processor.apply_chat_template(messages, **PREPARE, **sampling)), expected)
    assert_same(dict(processor.apply_chat_template(messages, **PREPARE, processor_kwargs={**sampling})), expected)
    assert messages == chat(str(CLIP))


def test_settings_and_several_videos(processor, upstream):
    url = {"type": "video", "url": CLIP.as_uri(), "video_end": 1.0}
    made = processor.apply_chat_template(chat({"type": "video", "video": str(CLIP), "nframes": 2}, url), **PREPARE)
    # The second video has no number of frames: all of its part.
    expected = expect(upstream, read_video(CLIP, num_frames=2), read_video(CLIP, video_end=1.0))
    assert_same(dict(made), expected)
    with pytest.raises(ValueError, match="`framerate` beside a video"):
        processor.apply_chat_template(chat({"type": "video", "video": str(CLIP), "framerate": 2}), **PREPARE)


def test_conversations_in_a_batch(processor):
    chats = [chat(str(CLIP)), chat({"type": "video", "video": str(CLIP), "nframes": 2}, text="?"), chat()]
    made = processor.apply_chat_template(chats, **PREPARE, num_frames=4, padding=True, padding_side="left")
    for number, conversation in enumerate(chats):
        single = processor.apply_chat_template(conversation, **PREPARE, num_frames=4)["input_ids"][0]
        assert made["input_ids"][number, -len(single) :].tolist() == single.tolist()
    single = processor.apply_chat_template(chats[:1], **PREPARE, num_frames=4)
    key = "pixel_values_videos"
    assert torch.equal(made[key][0], single[key][0])


@pytest.mark.parametrize(
    "videos",
    [str(CLIP), [str(CLIP)], [[CLIP]], CLIP, [CLIP.read_bytes()]],
    ids=["path", "list", "nested", "Path", "bytes"],
)
def test_videos_of_a_call(processor, upstream, videos):
    prompt = upstream.apply_chat_template(chat({"type": "video"}), add_generation_prompt=True)
    expected = expect(upstream, read_video(CLIP, num_frames=4))
    assert_same(dict(processor(text=prompt, videos=videos, num_frames=4, return_tensors="pt")), expected)
    nested = {"num_frames": 4}
    assert_same(dict(processor(text=prompt, videos=videos, videos_kwargs=nested, return_tensors="pt")), expected)
    assert nested == {"num_frames": 4}
    with pytest.raises(ValueError, match="`num_frames` must be an integer >= 1"):
        processor(text=prompt, videos=videos, num_frames=0)


def test_pictures_of_frames(processor, upstream, tmp_path):
    clip = read_video(CLIP, num_frames=4)
    names = [str(tmp_path / f"{number}.png") for number in range(4)]
    for name, frame in zip(names, clip.frames, strict=True):
        Image.fromarray(frame).save(name)
    expected = expect(upstream, read_video(clip.frames))
    assert_same(dict(processor.apply_chat_template(chat({"type": "video", "video": names}), **PREPARE)), expected)
    prompt = upstream.apply_chat_template(chat({"type": "video"}), add_generation_prompt=True)
    assert_same(dict(processor(text=prompt, videos=[[names]], return_tensors="pt")), expected)


IMAGE_FORMS = {
    "PIL": lambda array: Image.fromarray(array),
    "array": lambda array: array,
    "tensor": lambda array: torch.from_numpy(array.copy()).permute(2, 0, 1),
    "list": lambda array: [array],
    "list of lists": lambda array: [[Image.fromarray(array)]],
}


@pytest.mark.parametrize("form", IMAGE_FORMS)
@pytest.mark.parametrize("with_video", [False, True])
def test_images_of_a_call(processor, upstream, form, with_video):
    """An image may be an array in any layout, which no setting of a message has sized."""
    picture = IMAGE_FORMS[form](read_video(CLIP, num_frames=1).frames[0])
    parts = [{"type": "image"}, *([{"type": "video"}] if with_video else []), {"type": "text", "text": "What?"}]
    prompt = upstream.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    read = read_video(CLIP, num_frames=4)
    media = media_arguments([read] if with_video else [], [], torch.device("cpu"), upstream)
    expected = convert_to_tensors(upstream(text=[prompt], images=picture, **media), "pt")
    videos = {"videos": [str(CLIP)], "num_frames": 4} if with_video else {}
    found = processor(text=[prompt], images=picture, return_tensors="pt", **videos)
    assert_same(dict(found), dict(expected))


def test_the_rest_is_upstreams(processor, upstream, tmp_path):
    """Decoded frames, images, text, and templates that are not tokenized."""
    assert_same(video_inputs(processor), video_inputs(upstream))
    assert processor.apply_chat_template(chat(str(CLIP))) == upstream.apply_chat_template(chat(str(CLIP)))
    assert_same(*(dict(made.apply_chat_template(chat(), **PREPARE)) for made in (processor, upstream)))
    picture = Image.fromarray(read_video(CLIP, num_frames=1).frames[0])
    picture.save(tmp_path / "a.png")
    messages = chat({"type": "image", "image": picture})
    expected = dict(upstream.apply_chat_template(messages, **PREPARE))
    for source in (picture, str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri()):
        messages = chat({"type": "image", "image": source})
        assert_same(dict(processor.apply_chat_template(messages, **PREPARE)), expected)
    frames = chat({"type": "video", "video": np.asarray(read_video(CLIP, num_frames=4).frames)})
    described = {"video_metadata": [{"fps": 4.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}]}
    given = {**described, "do_sample_frames": False}
    made = (which.apply_chat_template(frames, **PREPARE, processor_kwargs={**given}) for which in (processor, upstream))
    assert_same(*map(dict, made))


def test_saved_and_loaded(family, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), family.processor.from_pretrained(tmp_path)):
        assert type(loaded) is family.processor and isinstance(loaded, FlashVIDProcessor)
        made = (which.apply_chat_template(chat(str(CLIP)), **PREPARE, num_frames=2) for which in (loaded, processor))
        assert_same(*map(dict, made))


def test_the_video_processors_own_sampling():
    """Qwen3-VL's published processors sample by a rate, and take at least four frames."""
    processor = build_processor("qwen3_vl")
    processor.video_processor.do_sample_frames, processor.video_processor.fps = True, 1
    for part, grids in (({}, 4), ({"video_end": 2.0}, 2), ({"nframes": 6}, 3)):
        made = processor.apply_chat_template(chat({"type": "video", "video": str(CLIP), **part}), **PREPARE)
        assert made["video_grid_thw"][0, 0] == grids
    made = processor.apply_chat_template(chat(str(CLIP)), **PREPARE, processor_kwargs={"do_sample_frames": False})
    assert made["video_grid_thw"][0, 0] == 8
    with pytest.raises(ValueError, match="`do_sample_frames` is False"):
        processor.apply_chat_template(
            chat(str(CLIP)), **PREPARE, processor_kwargs={"do_sample_frames": False, "num_frames": 2}
        )
