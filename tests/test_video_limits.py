"""How large a video or an image may be, and how much memory reading takes."""

import errno
import io
import math
import multiprocessing
import os
import re
import resource
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_video_io import write_clip

from flashvid_hf import FAMILIES, MediaLimits, read_video, resizing_of
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.tiny_models import build_processor
from flashvid_hf.video.message_parts import read_image_part, read_video_part
from flashvid_hf.video.pipeline_flashvid import media_arguments
from flashvid_hf.video.reading import available_backends
from flashvid_hf.video.sample_counts import check_sample_counts
from flashvid_hf.video.sources import load_picture

SIZE = (64, 96)
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def processor(request):
    return build_processor(request.param)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    options = {"a.gif": dict(codec="gif", pix_fmt="rgb8"), "a.mpg": dict(codec="mpeg2video")}
    names = ("a.mp4", "a.mkv", "a.ts", "a.avi", "a.h264", *options)
    paths = {name: write_clip(folder / name, 12, SIZE, fps=24, **options.get(name, {})) for name in names}
    pictures = [Image.new("RGB", SIZE[::-1], (20 * number, 0, 0)) for number in range(12)]
    paths["a.webp"] = folder / "a.webp"
    pictures[0].save(paths["a.webp"], save_all=True, append_images=pictures[1:], duration=40)
    return paths


def flat_clip(path, width, height, num_frames):
    """A video of one colour, which takes little time to make."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"preset": "ultrafast"}
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([90]) * plane.buffer_size)
        for number in range(num_frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def png(width, height, pixels=b""):
    """A picture whose header states this size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


# --- the size that the model wants ---


@pytest.mark.parametrize("num_frames, size", [(1, (64, 96)), (2, (37, 500)), (5, (420, 300)), (8, (252, 252))])
def test_pixels_are_those_of_the_processor(processor, num_frames, size):
    """Bit for bit, whether frames are resized one by one while they are read, or all at once by the processor."""
    frames = RANDOM.integers(0, 256, (num_frames, *size, 3), np.uint8)
    metadata = {"fps": 4.0}
    made = []
    for resizing in (None, resizing_of(processor)):
        clip = read_video(frames, video_metadata=metadata, resizing=resizing)
        media = media_arguments([clip], [], torch.device("cpu"), processor)
        assert ("videos_kwargs" in media) == (resizing is not None) == clip.is_resized
        assert (clip.metadata.height, clip.metadata.width) == size
        made.append(processor(text=[processor.video_token], **media))
    for name in made[0]:
        values = [
            torch.as_tensor(inputs[name][0] if isinstance(inputs[name], list) else inputs[name]) for inputs in made
        ]
        assert torch.equal(*values), name


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("is_capped", [False, True])
def test_pixels_within_limits_of_the_processor(family, is_capped):
    """The size may follow from the number of frames, and from settings of the video processor."""
    processor = build_processor(family)
    unit = (processor.video_processor.patch_size * processor.video_processor.merge_size) ** 2
    processor.video_processor.size = {"shortest_edge": 4 * unit, "longest_edge": 30 * unit}
    processor.video_processor.cap_pixels_per_frame = is_capped
    frames = RANDOM.integers(0, 256, (6, 200, 310, 3), np.uint8)
    read = [read_video(frames, video_metadata={"fps": 4.0}, resizing=r) for r in (None, resizing_of(processor))]
    made = [
        processor(text=[processor.video_token], **media_arguments([clip], [], torch.device("cpu"), processor))
        for clip in read
    ]
    assert read[1].frames.shape[1:3] != read[0].frames.shape[1:3]
    assert torch.equal(*(torch.as_tensor(inputs["pixel_values_videos"]) for inputs in made))


def test_other_ways_to_a_size_are_left_to_the_processor(clips):
    processor = build_processor("qwen2_5_vl")
    given = {"videos": [str(clips["a.mp4"])], "text": processor.video_token, "num_frames": 4}
    usual = processor(**given)["video_grid_thw"]
    small = processor(**given, size={"shortest_edge": 28**2, "longest_edge": 4 * 28**2})["video_grid_thw"]
    assert torch.as_tensor(small).prod() < torch.as_tensor(usual).prod()
    processor.video_processor.do_resize = False
    assert resizing_of(processor) is None and resizing_of(None) is None


# --- limits ---

EACH = ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.h264", "a.gif", "a.mpg", "a.webp"]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    "limit, value",
    [
        ("max_frame_pixels", SIZE[0] * SIZE[1]),
        ("max_file_frames", 12),
        ("max_seconds", 0.51),
        ("max_file_bytes", None),
        ("max_decoded_bytes", 12 * 3 * SIZE[0] * SIZE[1]),
    ],
)
def test_each_limit_is_named(clips, name, limit, value):
    value = clips[name].stat().st_size if value is None else value
    read_video(clips[name], limits=MediaLimits(**{limit: value}))
    with pytest.raises(ValueError, match=rf"`{limit}` is .*or raise the limit: `limits=MediaLimits\({limit}=") as error:
        read_video(clips[name], limits=MediaLimits(**{limit: value * 0.9}))
    assert str(clips[name]) in str(error.value) and f"`--{limit.replace('_', '-')}`" in str(error.value)


@pytest.mark.parametrize("limit, value", [("max_frame_pixels", 6000), ("max_file_frames", 11), ("max_seconds", 0.4)])
def test_decord_has_them_too(clips, limit, value):
    if "decord" not in available_backends():
        pytest.skip("decord is not installed")
    with pytest.raises(ValueError, match=f"cannot be read: `{limit}` is"):
        read_video(clips["a.mp4"], backend="decord", limits=MediaLimits(**{limit: value}))


@pytest.mark.parametrize("value", [0, -1, "5", None, True, math.nan])
def test_limits_are_numbers(value):
    with pytest.raises(ValueError, match="`max_seconds` must be a number > 0"):
        MediaLimits(max_seconds=value)
    with pytest.raises(ValueError, match="`limits` must be `MediaLimits`, got dict"):
        read_video(np.zeros((1, 8, 8, 3), np.uint8), limits={"max_seconds": 1})


def test_frames_in_memory_have_no_limit():
    limits = MediaLimits(max_frame_pixels=1, max_file_frames=1, max_seconds=0.1, max_decoded_bytes=1)
    assert len(read_video(np.zeros((3, 8, 8, 3), np.uint8), video_metadata={"fps": 1.0}, limits=limits).frames) == 3


def test_a_pause_of_years(tmp_path):
    """Nothing is counted up to the end of the video."""
    path = write_clip(tmp_path / "a.mkv", 3, SIZE, fps=24, times=np.array([0, 40, 10 * 365 * 24 * 3600 * 1000]))
    with pytest.raises(ValueError, match="`max_seconds` is 604800, and the duration"):
        read_video(path, num_frames=2)
    limits = MediaLimits(max_seconds=math.inf)
    assert len(read_video(path, num_frames=2, video_start=1.0, limits=limits).frames) == 2
    with pytest.raises(ValueError, match="`max_file_frames` is 4194304, and more frames are to be taken"):
        read_video(path, fps=24, limits=limits)


def test_a_frame_that_grows(tmp_path):
    """A stream may change its size after the header."""
    small, large = (flat_clip(tmp_path / f"{side}.h264", side, side, 3) for side in (64, 512))
    path = tmp_path / "grows.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert read_video(path, num_frames=6).frames.shape == (6, 64, 64, 3)
    with pytest.raises(ValueError, match="`max_frame_pixels` is 10000, and its frames have 512 x 512 pixels"):
        read_video(path, num_frames=6, limits=MediaLimits(max_frame_pixels=10_000))


SAMPLES = 8 * 10**7


@pytest.mark.parametrize("size", ["W30000 H30000", "W2147483647 H2147483647", "W4294967296 H5", "W16000 H16000"])
def test_a_header_of_very_large_pictures(tmp_path, size):
    content = f"YUV4MPEG2 {size} F25:1 C420jpeg\nFRAME\n".encode() + bytes(10_000)
    for limits in (None, MediaLimits(max_frame_pixels=20)):
        with pytest.raises(ValueError, match="cannot be read: `max_frame_pixels` is .* must be at most the limit"):
            read_video(content, limits=limits)
    with pytest.raises(ValueError, match="it is damaged"):
        read_video(content, limits=MediaLimits(max_frame_pixels=math.inf))


BROKEN = {
    "no width": b"YUV4MPEG2 W0 H5 F25:1\nFRAME\n" + bytes(99),
    "a width below 0": b"YUV4MPEG2 W-4 H5 F25:1\nFRAME\n" + bytes(99),
    "no size": b"YUV4MPEG2 F25:1\nFRAME\n" + bytes(99),
    "no number": b"YUV4MPEG2 Wx H5 F25:1\nFRAME\n" + bytes(99),
    "matroska": b"\x1aE\xdf\xa3" + bytes(99),
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(999),
    "gif": b"GIF89a\x05\0\x05\0",
    "flv": b"FLV\x01\x05\0\0\0\x09" + bytes(99),
    "text": b"some text",
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_of_the_decoder_are_words(name):
    with pytest.raises(ValueError, match="it is (damaged|cut short)") as raised:
        read_video(BROKEN[name], backend="pyav")
    assert not re.search("Errno|busy|not permitted|/", str(raised.value))  # no number, and no path of a copy


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM, errno.EIO, errno.ENOMEM])
def test_numbers_of_the_system_are_words(clips, monkeypatch, number):
    def fail(*_, **__):
        raise av.error.OSError(number, os.strerror(number), "/a/copy")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(ValueError, match="pyav: it is damaged, or of a kind that FFmpeg cannot read: ") as raised:
        read_video(clips["a.mkv"])
    assert not re.search("Errno|busy|not permitted|/a/copy", str(raised.value))


def claim(content, **numbers):
    """Overwrite a word of 4 bytes after the name of a table, by table and place."""
    content = bytearray(content)
    for name, number in numbers.items():
        table, place = name.split("_")
        start = content.index(table.encode()) + int(place)
        content[start : start + 4] = struct.pack(">I", number)
    return bytes(content)


@pytest.mark.parametrize("backend", available_backends())
def test_samples_that_a_file_does_not_have(clips, tmp_path, backend):
    """FFmpeg would take 5 GB for a file of 2 KB."""
    whole = clips["a.mp4"].read_bytes()
    fragmented = write_clip(tmp_path / "f.mp4", 12, SIZE, container_options={"movflags": "frag_keyframe+empty_moov"})
    bombs = {
        "table": claim(whole, stsz_8=1, stsz_12=SAMPLES, stts_12=SAMPLES, stsc_16=SAMPLES),
        "times": claim(whole, stts_12=SAMPLES),
        "fragment": claim(fragmented.read_bytes(), trun_4=1, trun_8=SAMPLES),
    }
    start = whole.index(b"moov") - 4
    header = bombs["table"][start:]
    packed = zlib.compress(header)
    cmvd = struct.pack(">I4sI", len(packed) + 12, b"cmvd", len(header)) + packed
    cmov = struct.pack(">I4s", 8 + 12 + len(cmvd), b"cmov") + struct.pack(">I4s4s", 12, b"dcom", b"zlib") + cmvd
    bombs["packed"] = bombs["table"][:start] + struct.pack(">I4s", 8 + len(cmov), b"moov") + cmov
    for name, content in bombs.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="`max_file_frames` is 4194304, and a track of the file has more frames"):
            read_video(path, backend=backend)
        # Below the limit the size of the file is the next one.
        with pytest.raises(ValueError, match="a track has 80000000 samples, and the file"):
            check_sample_counts(str(path), MediaLimits(max_file_frames=SAMPLES))


def test_uncompressed_sound_has_many_samples(tmp_path):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=24)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        container.mux(video.encode(av.VideoFrame(96, 64, "yuv420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode())
    check_sample_counts(str(path), MediaLimits(max_file_frames=100))
    assert read_video(path, limits=MediaLimits(max_file_frames=100)).frames.shape == (1, 64, 96, 3)


# --- pictures ---


@pytest.mark.parametrize("form", ["path", "bytes", "data", "frames", "part", "webp"])
def test_picture_bombs(tmp_path, form):
    """The header of a small file states 30000 x 30000 pixels; the second limit is above Pillow's own."""
    content, path = png(13_000, 13_000), tmp_path / "a.png"
    path.write_bytes(content)
    limits = MediaLimits(max_image_pixels=1_000_000)
    with pytest.raises(ValueError, match=r"`max_(image|frame)_pixels` is .* 13000 x 13000|16384 x 16384"):
        if form == "path":
            load_picture(path, limits=limits)
        elif form == "bytes":
            load_picture(content, limits=limits)
        elif form == "data":
            load_picture("data:image/png;base64," + __import__("base64").b64encode(content).decode(), limits=limits)
        elif form == "frames":
            read_video([str(path)] * 2, limits=limits)
        elif form == "part":
            read_image_part({"type": "image", "image": str(path)}, None, limits=limits)
        else:
            head = b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8X" + struct.pack("<IB3x", 10, 2)
            path.write_bytes(head + (16383).to_bytes(3, "little") * 2 + bytes(80))
            read_video(path)


def test_default_limit_of_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(png(30_000, 30_000))
    with pytest.raises(ValueError, match="decompression bomb"):
        load_picture(tmp_path / "a.png")


def test_formats_of_pictures(tmp_path):
    """Common formats are read; that of EPS would start a program."""
    picture = Image.new("RGB", (20, 10), (200, 0, 0))
    for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm", "ico", "jp2", "tga"):
        picture.save(tmp_path / f"a.{ending}")
        assert load_picture(tmp_path / f"a.{ending}").width >= 10
    picture.save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="cannot identify image file"):
        load_picture(tmp_path / "a.eps")


def test_only_the_chosen_pictures_are_read(tmp_path):
    """As of a video file, whose other frames are not decoded."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    good, bad = str(tmp_path / "a.png"), str(tmp_path / "missing.png")
    assert read_video([good, bad, good], num_frames=2).frames.shape == (2, 10, 20, 3)
    with pytest.raises(ValueError, match="missing.png.* does not exist"):
        read_video([good, bad, good])


# --- every door ---


def test_limits_of_processors_and_requests(clips):
    processor = build_processor("llava_onevision")
    limits = MediaLimits(max_frame_pixels=100, max_image_pixels=100)
    path = str(clips["a.mp4"])
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="`max_frame_pixels` is 100"):
        processor(text=processor.video_token, videos=[path], num_frames=2, limits=limits)
    with pytest.raises(ValueError, match="`max_frame_pixels` is 100"):
        read_video_part({"type": "video", "video": path}, {}, processor, limits)
    messages = [{"role": "user", "content": [{"type": "video", "video": path}]}]
    with pytest.raises(ValueError, match="`max_frame_pixels` is 100"):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True, processor_kwargs={"limits": limits})
    reader = RequestReader("model", 4, Path(path).parent, processor, limits=limits)
    part = {"type": "video_url", "video_url": {"url": path}}
    with pytest.raises(ValueError, match="`max_frame_pixels` is 100"):
        reader.read({"messages": [{"role": "user", "content": [part]}]}, "messages")


# --- memory ---


def peak_of(path, family, num_frames, results):
    """The MB that reading adds to a process, and those of the frames."""
    processor = build_processor(family)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        kept = read_video_part(
            {"type": "video", "video": str(path), "nframes": num_frames}, {}, processor
        ).frames.nbytes
    except ValueError as error:
        kept = str(error)
    results.put((kept, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measure(path, family, num_frames):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=peak_of, args=(path, family, num_frames, results))
    process.start()
    found = results.get(timeout=300)
    process.join()
    return found


def test_memory_of_large_frames(tmp_path):
    """The frames of the source do not add up: 24 of 3840 x 2160 take 600 MB. The rest is the decoder, and libraries."""
    kept, peak = measure(flat_clip(Path(tmp_path, "a.mp4"), 3840, 2160, 24), "llava_onevision", 24)
    assert kept < 20 * 2**20 and peak < 450


def test_memory_of_frames_that_are_too_large(tmp_path):
    kept, peak = measure(flat_clip(Path(tmp_path, "a.mp4"), 8192, 8192, 1), "llava_onevision", 1)
    assert "`max_frame_pixels` is 35651584, and its frames have 8192 x 8192 pixels" in kept and peak < 150
