"""The stages of the pipeline: their times, where frames are processed, and reading ahead in other processes."""

import time

import pytest
import torch
from checkpoints import CLIP, build_pipeline, untimed
from PIL import Image

from flashvid_hf import VideoTextToTextPipeline, read_video
from flashvid_hf.families import FAMILIES_BY_NAME
from flashvid_hf.video import message_parts, pipeline_flashvid

STAGES = ["decode", "preprocess", "generate"]
SETTINGS = {"max_new_tokens": 4, "do_sample": False, "num_frames": 4}
CHAT = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.fromarray(read_video(CLIP, num_frames=1).frames[0])},
            {"type": "video", "path": str(CLIP)},
            {"type": "text", "text": "What moves?"},
        ],
    }
]


@pytest.fixture(scope="module", params=FAMILIES_BY_NAME)
def every_pipe(request, tmp_path_factory) -> VideoTextToTextPipeline:
    return build_pipeline(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> VideoTextToTextPipeline:
    return build_pipeline(tmp_path_factory, "llava_video")


def delay(monkeypatch, owner, name: str, seconds: float) -> None:
    original = getattr(owner, name)

    def late(*args, **kwargs):
        time.sleep(seconds)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, late)


# Times


def test_each_stage_has_its_own_time(pipe, monkeypatch):
    """Each stage is slowed by a different time."""
    delays = {"decode": 0.6, "preprocess": 1.2, "generate": 1.8}
    delay(monkeypatch, message_parts, "read_video", delays["decode"])
    delay(monkeypatch, pipe, "_process", delays["preprocess"])
    delay(monkeypatch, pipe.model, "generate", delays["generate"])
    start = time.perf_counter()
    (answer,) = pipe(CLIP, text="What moves?", **SETTINGS)
    seconds, elapsed = answer["seconds"], time.perf_counter() - start
    assert list(answer) == ["generated_text", "video_tokens", "seconds"]
    assert [name for name in seconds if name in STAGES] == STAGES == [*seconds][:2] + [*seconds][-1:]
    for stage, least in delays.items():
        assert seconds[stage] >= least
    assert sum(seconds[stage] for stage in STAGES) <= elapsed


def test_a_batch_shares_all_stages_but_the_reading(pipe, monkeypatch):
    read, reads = message_parts.read_video, []

    def slower_each_time(*args, **kwargs):
        reads.append(args)
        time.sleep(0.5 * len(reads))
        return read(*args, **kwargs)

    monkeypatch.setattr(message_parts, "read_video", slower_each_time)
    beams = {"num_beams": 2, "num_return_sequences": 2}
    answers = pipe([CLIP, CLIP], text="What moves?", batch_size=2, **beams, **SETTINGS)
    first, second = ([sequence["seconds"] for sequence in answer] for answer in answers)
    assert first[0] == first[1] and second[0] == second[1] and first[0] is not first[1]
    assert 0.5 <= first[0].pop("decode") < second[0].pop("decode") and second[1]["decode"] >= 1
    assert first[0] == second[0]


def test_text_takes_no_time_to_read(pipe):
    (answer,) = pipe(text="What moves?", max_new_tokens=2)
    assert 0 <= answer["seconds"]["decode"] < 0.1


def test_stages_of_the_report_stand_between(pipe, monkeypatch):
    made, generate = [], pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **kwargs: made.append(generate(**kwargs)) or made[-1])
    (answer,) = pipe(CLIP, text="What moves?", **SETTINGS)
    (outputs,) = made
    assert list(outputs.report.seconds) == ["vision", "compression", "prefill"]
    assert list(answer["seconds"]) == [*STAGES[:2], *outputs.report.seconds, STAGES[2]]
    assert outputs.report.seconds.items() <= answer["seconds"].items()
    assert sum(outputs.report.seconds.values()) < answer["seconds"]["generate"]


# Where frames are processed


def spy(monkeypatch, pipe) -> list[tuple]:
    """The calls of the image and video processor: their inputs and the device. The processors run on the CPU."""
    calls = []
    for name in ("image_processor", "video_processor"):
        processor = getattr(pipe.processor, name)
        preprocess = processor.preprocess

        def note(media, *args, name=name, preprocess=preprocess, **kwargs):
            calls.append((name, media, kwargs.get("device")))
            return preprocess(media, *args, **{**kwargs, "device": "cpu"})

        monkeypatch.setattr(processor, "preprocess", note)
    return calls


@pytest.mark.parametrize(("device", "expected"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_frames_are_processed_where_the_model_is(every_pipe, monkeypatch, device, expected):
    """The processors get 8-bit frames and the device."""
    calls = spy(monkeypatch, every_pipe)
    monkeypatch.setattr(every_pipe, "device", torch.device(device))
    every_pipe._process([every_pipe.preprocess(CHAT, num_frames=4)["request"]])
    assert {name: str(place) for name, _, place in calls} == {"image_processor": expected, "video_processor": expected}
    (frames,) = next(media for name, media, _ in calls if name == "video_processor")
    assert frames.dtype.itemsize == 1 and len(frames) == 4


def test_many_large_frames_are_processed_on_the_cpu(every_pipe, monkeypatch):
    """On the GPU they would take too much memory, because resizing computes in floats on all frames at once."""
    calls = spy(monkeypatch, every_pipe)
    monkeypatch.setattr(every_pipe, "device", torch.device("cuda"))
    request = every_pipe.preprocess(CHAT, num_frames=4)["request"]
    for limit, expected in ((request.clips[0].frames.nbytes, "cuda"), (request.clips[0].frames.nbytes - 1, "cpu")):
        calls.clear()
        monkeypatch.setattr(pipeline_flashvid, "_MOST_BYTES_ON_GPU", limit)
        every_pipe._process([request])
        assert [str(place) for _, _, place in calls] == [expected, expected]


def test_the_device_alone_changes_no_pixel(every_pipe):
    request = every_pipe.preprocess(CHAT, num_frames=4)["request"]
    named = every_pipe._process([request])
    plain = every_pipe.processor(
        text=[every_pipe.processor.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)],
        images=[picture.image for picture in request.pictures],
        videos=[clip.frames for clip in request.clips],
        video_metadata=[clip.metadata for clip in request.clips],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert named.keys() == plain.keys()
    for name, values in plain.items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(named[name], values), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_arrive_on_the_gpu(every_pipe, monkeypatch):
    request = every_pipe.preprocess(CHAT, num_frames=4)["request"]
    on_cpu = every_pipe._process([request])
    monkeypatch.setattr(every_pipe, "device", torch.device("cuda", 0))
    on_gpu = every_pipe._process([request])
    for name in [name for name in on_cpu if name.startswith("pixel_values")]:
        assert on_gpu[name].device.type == "cuda"
        torch.testing.assert_close(on_gpu[name].cpu(), on_cpu[name], atol=0.05, rtol=0)  # a level of 255, normalised


# Reading ahead


@pytest.mark.parametrize("batch_size", [1, 2])
def test_workers_read_the_same(pipe, batch_size):
    questions = {"text": ["What moves?", "Where to?", "Why?"], "batch_size": batch_size, **SETTINGS}
    expected = pipe([CLIP] * 3, **questions)
    for num_workers in (1, 2):
        answers = pipe([CLIP] * 3, num_workers=num_workers, **questions)
        assert untimed(answers) == untimed(expected)
        assert all(answer["seconds"]["decode"] > 0 for (answer,) in answers)
    items = ({"video": CLIP, "text": text} for text in questions.pop("text"))
    assert untimed(list(pipe(items, num_workers=1, **questions))) == untimed(expected)


def test_errors_of_workers_are_those_of_the_reading(pipe):
    with pytest.raises(ValueError, match=r"missing.mp4' does not exist"):
        pipe([CLIP, "missing.mp4"], text="?", num_workers=1, **SETTINGS)


def test_workers_read_while_the_model_is_at_work(pipe, monkeypatch, tmp_path):
    """The first input is finished only after the second has been read."""
    read, process = message_parts.read_video, pipe._process

    def read_and_note(*args, **kwargs):
        clip = read(*args, **kwargs)
        (tmp_path / f"read {time.monotonic_ns()}").touch()  # in another process
        return clip

    def wait_and_process(requests):
        end = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < end, "nothing is read meanwhile"
            time.sleep(0.01)
        return process(requests)

    monkeypatch.setattr(message_parts, "read_video", read_and_note)
    monkeypatch.setattr(pipe, "_process", wait_and_process)
    assert len(pipe([CLIP] * 2, text="What moves?", num_workers=1, **SETTINGS)) == 2
