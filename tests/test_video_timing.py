"""Videos whose frames are not evenly spaced: which frame is shown when, and what the models hear about it."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from checkpoints import build_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_video_io import av, numbered_frame, numbers_of, write_clip

from flashvid_hf import read_video
from flashvid_hf.video import decoder_types, pyav_decoder
from flashvid_hf.video.frame_plan import FramePlan
from flashvid_hf.video.reading import available_backends
from flashvid_hf.video.timing import make_timeline

SIZE = (48, 64)
RANDOM = np.random.default_rng(0)
# Milliseconds at which the frames of recordings are shown.
TIMES = {
    "two pauses": np.cumsum([0] + [33] * 20 + [8000] + [33] * 20 + [15000] + [33] * 37),
    "slides": np.array([0, 4000, 4040, 9500, 9540, 9580, 30000, 30040]),
    "jitter and a pause": np.cumsum([0, *RANDOM.integers(26, 41, 60), 6000, *RANDOM.integers(26, 41, 60)]),
    "bursts": np.cumsum([0] + [1, 2, 97] * 30 + [5000] + [100] * 10),
    "one frame in 20 dropped": np.delete(np.arange(0, 4000, 40), np.s_[10::20]),
    "slower and slower": np.cumsum([0, *np.geomspace(20, 2000, 30).round()]),
    "ends in a pause": np.array([0, 100, 200, 300, 9000]),
}
CONTAINERS = {
    "mkv": {},
    "webm": dict(codec="libvpx", options={"deadline": "realtime"}),
    "mp4": {},
    "mov": dict(options={"bf": "0"}),
    "ts": {},
    "flv": {},
    "wmv": dict(codec="wmv2"),
}


def shown_at(times, seconds, tick=0.0):
    """The numbers of the frames that a player shows at some seconds after the first frame."""
    starts = (np.asarray(times) - times[0]) / 1000
    return (np.searchsorted(starts, np.asarray(seconds) + tick + 1e-6, side="right") - 1).tolist()


def check(clip, times, tick):
    """Every frame is the one that is shown at its time, or is shown within the unit `tick` of the file after it."""
    found = numbers_of(clip.frames)
    seconds = clip.metadata.timestamps
    early, late = shown_at(times, seconds, -tick * (tick > 0.02)), shown_at(times, seconds, tick)
    assert all(a <= number <= b for a, number, b in zip(early, found, late, strict=True)), (early, found, late)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", TIMES)
def test_the_frame_of_an_index_is_the_one_that_is_shown_then(tmp_path, container, kind):
    times = TIMES[kind]
    path = write_clip(tmp_path / f"a.{container}", len(times), SIZE, fps=30, times=times, **CONTAINERS[container])
    for sampling in (dict(num_frames=9), dict(fps=2), dict(fps=5)):
        clip = read_video(path, **sampling)
        metadata = clip.metadata
        # So few dropped frames leave each frame within half a frame of a constant rate, which is a little lower.
        check(clip, times, 0.0211 if metadata.total_num_frames == len(times) else 0.0011)
        assert metadata.duration == metadata.total_num_frames / metadata.fps
        length = metadata.duration - (times[-1] - times[0]) / 1000  # of the last frame
        assert 0 < length < np.median(np.diff(times)) / 1000 + 0.1
        assert 20 <= metadata.fps <= 240
        if "fps" in sampling:
            assert abs(len(clip.frames) - metadata.duration * sampling["fps"]) <= 1
            assert metadata.sampled_fps == pytest.approx(sampling["fps"], rel=0.15)


@pytest.mark.parametrize("kind", ["two pauses", "slides"])
def test_decord_knows_the_times_too(tmp_path, kind):
    if "decord" not in available_backends():
        pytest.skip("decord is not installed")
    path = write_clip(tmp_path / "a.mp4", len(TIMES[kind]), SIZE, fps=30, times=TIMES[kind])
    for sampling in (dict(num_frames=9), dict(fps=2)):
        ours, theirs = (read_video(path, backend=backend, **sampling) for backend in ("pyav", "decord"))
        check(theirs, TIMES[kind], 0.0011)
        assert theirs.metadata.frames_indices == ours.metadata.frames_indices
        assert theirs.metadata.fps == ours.metadata.fps
        np.testing.assert_array_equal(ours.frames, theirs.frames)


@pytest.mark.parametrize(
    "container, rate", [("mkv", 240), ("mkv", 1000), ("mkv", 90000), ("webm", 1000), ("mp4", 1000), ("flv", 1000)]
)
def test_absurd_rates_in_the_header_do_no_harm(tmp_path, container, rate):
    """A constant rate of 25, and a recording with pauses, in files whose header states another rate."""
    settings = dict(size=SIZE, fps=rate, **CONTAINERS[container])
    even = write_clip(tmp_path / f"even.{container}", 40, times=np.arange(40) * 40, **settings)
    clip = read_video(even, num_frames=5)
    assert clip.metadata.fps == pytest.approx(25, rel=0.01)
    assert clip.metadata.total_num_frames == 40 and numbers_of(clip.frames) == clip.metadata.frames_indices
    times = TIMES["two pauses"]
    uneven = write_clip(tmp_path / f"a.{container}", 80, times=times, **settings)
    clip = read_video(uneven, fps=2)
    check(clip, times, 0.0011)
    assert 25.5 < clip.metadata.duration < 26.7 and 50 <= len(clip.frames) <= 53


@pytest.mark.parametrize("container", ["mkv", "mp4", "ts"])
def test_constant_rates_stay_as_they_are(tmp_path, container):
    """Also where times are rounded, jitter by a few milliseconds, or do not start at 0."""
    for times in (np.arange(60) * 1000 / 24, np.arange(60) * 1000 / 24 + RANDOM.uniform(-8, 8, 60) + 5000):
        path = write_clip(tmp_path / f"a.{container}", 60, SIZE, fps=24, times=times.round())
        clip = read_video(path, num_frames=13)
        assert clip.metadata.total_num_frames == 60
        assert clip.metadata.fps == pytest.approx(24, rel=0.01)
        assert numbers_of(clip.frames) == clip.metadata.frames_indices


def test_a_long_pause_is_decoded_once(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mkv", 8, SIZE, fps=30, times=TIMES["slides"])
    made = []
    convert = pyav_decoder._to_picture
    monkeypatch.setattr(pyav_decoder, "_to_picture", lambda *a: made.append(a[0].pts) or convert(*a))
    frames, *_ = pyav_decoder.read_pyav(str(path), FramePlan(lambda total, fps: list(range(0, total, 10))))
    assert len(frames) > 60 and len(made) == len(set(made)) <= 8
    assert len({id(frame) for frame in frames}) == len(made), "places that show the same frame share its memory"


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
def test_dropped_frames_of_avi(tmp_path, codec):
    """AVI has an empty chunk for each dropped frame; H.264 with B frames has no times of presentation there."""
    places = np.cumsum([0] + [1 if i % 4 else 3 for i in range(39)])
    path = tmp_path / "drops.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, place in enumerate(places):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *SIZE), format="rgb24")
            frame.pts = int(place)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for num_frames in (4, 30):
        clip = read_video(path, num_frames=num_frames)
        assert len(clip.frames) == num_frames and clip.metadata.fps == 25
        assert clip.metadata.duration == pytest.approx((places[-1] + 1) / 25, abs=0.13)
        # Times of decoding are those of presentation but for the order of B frames: up to three frames.
        check(clip, places * 40, 0.2 if codec == "libx264" else 0)


def test_a_duplicate_time_does_not_stop_the_clock(tmp_path):
    """Browsers write two frames with the same millisecond."""
    times = np.cumsum([0] + [33, 33, 0] * 13 + [4000, 33, 33])
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(len(times)):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *SIZE), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = int(times[number])
                container.mux(packet)
    clip = read_video(path, num_frames=12)
    check(clip, times, 0.0011)
    assert clip.metadata.duration == pytest.approx(times[-1] / 1000, abs=0.1)


EVEN, UNEVEN, UNSET = [100] * 8, [100, 900, 40, 2000, 40, 40, 300, 500], [0] * 8


# An animated PNG without durations is left out: FFmpeg shows its frames for 0.1 s or as fast as it can.
@pytest.mark.parametrize(
    ("name", "durations"),
    [
        (name, of)
        for name in ("a.gif", "a.png", "a.webp")
        for of in (EVEN, UNEVEN, UNSET)
        if (name, of) != ("a.png", UNSET)
    ],
)
def test_animated_pictures(tmp_path, name, durations):
    pictures = [Image.fromarray(numbered_frame(number, *SIZE)) for number in range(8)]
    more = dict(lossless=True) if name == "a.webp" else {}
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=durations, **more)
    clip = read_video(tmp_path / name, num_frames=8)
    shown = [duration or 100 for duration in durations]  # what browsers do with 0
    times = np.cumsum([0, *shown[:-1]])
    check(clip, times, 0.01)
    assert clip.metadata.duration == pytest.approx(sum(shown) / 1000, abs=0.05)
    if len(set(durations)) == 1:
        assert numbers_of(clip.frames) == list(range(8)) and clip.metadata.fps == pytest.approx(10)
    assert clip.metadata.video_backend == ("pillow" if name == "a.webp" else "pyav")


def test_animated_webp_is_for_pillow(tmp_path):
    pictures = [Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(4)]
    path = tmp_path / "a.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    with pytest.raises(ValueError, match=r"a.webp' is an animated WebP, which pyav cannot read: leave out `backend`"):
        read_video(path, backend="pyav")
    content = path.read_bytes()
    assert len(read_video(content).frames) == 4
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="pillow: it is cut short"):
        read_video(path)
    pictures[0].save(path)
    assert read_video(path).frames.shape == (1, 48, 64, 3), "a picture that stands still is a video of one frame"


# --- the timeline itself ---


def test_timeline_of_a_pause():
    timeline = make_timeline([5.0, 5.04, 5.08, 7.08, 7.12], [25.0], [0.04])
    assert timeline.fps == 25 and timeline.total == 54
    assert [timeline.frame_at(index) for index in (0, 1, 2, 3, 51, 52, 53)] == [0, 1, 2, 2, 2, 3, 4]
    # The header's rate is too low for the shortest interval, and absurdly high.
    for rate in (10.0, 1000.0, 90000.0, None):
        assert make_timeline([5.0, 5.04, 5.08, 7.08, 7.12], [rate], [0.04]).fps == pytest.approx(25)
    assert make_timeline([0.0, 0.5, 1.0, 5.0], [2.0]).fps == 24, "a whole multiple of the header's rate"


def test_timeline_of_a_constant_rate():
    assert make_timeline([3.0, 3.5, 4.0], [2.0]) == (3, 2.0, None, 0.0)
    assert make_timeline([3.0, 3.1, 3.2], [1000.0, 10.0]) == (3, 10.0, None, 0.0)
    assert make_timeline([0.0, 10.0, 20.0, 30.0], [0.1]) == (4, 0.1, None, 0.0)
    assert make_timeline([0.0, 0.1, 0.2], [90000.0]).fps == pytest.approx(10), "the mean rate"
    assert make_timeline([0.0, 8.0], [30.0], [0.033]).total == pytest.approx(8.033 * 30, abs=1), "not one frame in 8 s"


def test_timeline_of_one_frame():
    assert make_timeline([7.0], [24.0]) == (1, 24.0, None, 0.0)
    assert make_timeline([7.0], [90000.0]) == (1, 25.0, None, 0.0)
    assert make_timeline([7.0], [90000.0], [2.0]) == (1, 0.5, None, 0.0)
    assert make_timeline([7.0], []) == (1, None, None, 0.0)


@given(
    steps=st.lists(st.integers(0, 5000), min_size=0, max_size=60),
    start=st.integers(-1000, 10**9),
    rate=st.sampled_from([None, 1, 15, 24, 29.97, 60, 1000, 90000]),
    last=st.integers(0, 5000),
)
@settings(deadline=None)
def test_every_index_has_the_frame_of_its_time(steps, start, rate, last):
    times = [start + int(step) for step in np.cumsum([0, *steps])]
    timeline = make_timeline([time / 1000 for time in times], [rate], [last / 1000], 0.001)
    assert timeline.total >= 1 and (timeline.fps is None or 0 < timeline.fps < np.inf)
    indices = range(0, timeline.total, max(timeline.total // 50, 1))
    found = [timeline.frame_at(index) for index in [*indices, timeline.total - 1]]
    assert found == sorted(found) and found[0] >= 0 and found[-1] == len(times) - 1
    if timeline.fps is None:
        return
    for index, number in zip(indices, found, strict=False):
        if timeline.starts is None:  # a constant rate: half a frame, at most 50 ms
            assert abs((times[number] - times[0]) / 1000 - index / timeline.fps) <= 0.05 + 1e-6 or len(set(times)) == 1
        else:
            early, late = (shown_at(times, [index / timeline.fps], tick)[0] for tick in (-2e-6, 0.001))
            assert max(early, 0) <= number <= late


# --- what the models are told ---


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_models_are_told_real_times(tmp_path, tmp_path_factory, family):
    times = TIMES["two pauses"]
    path = write_clip(tmp_path / "a.mkv", len(times), (96, 128), fps=30, times=times)
    pipe = build_pipeline(tmp_path_factory, family)
    request = pipe.preprocess({"video": str(path), "text": "What?"}, num_frames=8)["request"]
    inputs = pipe._process([request])
    (clip,) = request.clips
    check(clip, times, 0.0011)
    step = (clip.metadata.total_num_frames - 1) / 7 / clip.metadata.fps
    if family == "qwen2_5_vl":
        told = inputs["second_per_grid_ts"]
        assert float(told[0]) == pytest.approx(2 * clip.metadata.duration / 8)
    else:
        text = pipe.processor.tokenizer.decode(inputs["input_ids"][0])
        for grid in range(4):
            assert f"<{(2 * grid + 0.5) * step:.1f} seconds>" in text


def test_decoder_types_are_errors_of_values():
    assert issubclass(decoder_types.NoVideo, ValueError) and issubclass(decoder_types.DamagedVideo, ValueError)


def write_joined(path, numbers, codec):
    """Recordings of so many frames, joined byte by byte; the frames are numbered through."""
    content, first = b"", 0
    for number in numbers:
        part = path.with_name(f"{first}{path.suffix}")
        write_clip(part, number, (48, 64), fps=25, codec=codec, pix_fmt="yuv420p", first=first)
        content, first = content + part.read_bytes(), first + number
    path.write_bytes(content)
    return path


JOINED = [("mpg", "mpeg2video", (30, 30, 30)), ("mpg", "mpeg2video", (50, 30)), ("webm", "libvpx", (30, 50))]


@pytest.mark.parametrize("ending, codec, numbers", [*JOINED, ("mkv", "libx264", (50, 30))])
def test_time_goes_on_where_it_starts_again(tmp_path, ending, codec, numbers):
    """Recordings that were joined byte by byte, or a recorder that was started again."""
    result = read_video(write_joined(tmp_path / f"joined.{ending}", numbers, codec), num_frames=sum(numbers))
    assert numbers_of(result.frames) == result.metadata.frames_indices == list(range(sum(numbers)))
    assert result.metadata.fps == 25 and result.metadata.duration == pytest.approx(sum(numbers) / 25)


@pytest.mark.parametrize(
    "ending, numbers", [("mp4", (30, 50)), ("mov", (50, 30)), ("avi", (30, 30)), ("mkv", (30, 30, 30))]
)
def test_joined_recordings_that_cannot_be_read_are_named(tmp_path, ending, numbers):
    path = write_joined(tmp_path / f"joined.{ending}", numbers, "libx264")
    with pytest.raises(ValueError, match="recordings were joined byte by byte, and not all of them can be read"):
        read_video(path)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "gif", "png", "webp"])
@pytest.mark.parametrize("held", [1.5, 3.0])
def test_a_last_frame_that_is_held(tmp_path, ending, held):
    """The end of animations and of recordings of screens."""
    path = tmp_path / f"a.{ending}"
    if ending in ("gif", "png", "webp"):
        pictures = [Image.fromarray(numbered_frame(index)) for index in range(10)]
        rest = {"append_images": pictures[1:], "duration": [100] * 9 + [round(1000 * held)]}
        pictures[0].save(path, save_all=True, **rest, **({"lossless": True} if ending == "webp" else {}))
    else:
        write_clip(path, 10, fps=10, options={"bf": "0"})
        hold_the_last_frame(path, held)
    result = read_video(path, fps=2)
    assert result.metadata.duration == pytest.approx(0.9 + held, abs=0.05)
    times = np.array(result.metadata.timestamps)
    assert numbers_of(result.frames) == np.minimum((times * 10 + 0.01).astype(int), 9).tolist()
    assert set(numbers_of(read_video(path, video_start=1.2, video_end=0.8 + held).frames)) == {9}


def hold_the_last_frame(path, seconds):
    """Write the file anew, with a last packet that lasts for so many seconds."""
    source = path.with_name(f"source{path.suffix}")
    path.rename(source)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux() if packet.dts is not None]
        packets[-1].duration = round(seconds / packets[-1].time_base)
        for packet in packets:
            packet.stream = copy
            new.mux(packet)


@pytest.mark.parametrize("num_b_frames", [0, 3])
@pytest.mark.parametrize("start", [95440.1, 95443.0])
def test_the_clock_of_transport_streams_starts_anew(tmp_path, num_b_frames, start):
    """It has 33 bits: 26.5 hours."""
    times, options = 1000 * start + 40 * np.arange(100), {"bf": str(num_b_frames)}
    path = write_clip(tmp_path / "a.ts", 100, (48, 64), fps=25, times=times, options=options)
    result = read_video(path, num_frames=100)
    assert numbers_of(result.frames) == result.metadata.frames_indices == list(range(100))
    assert result.metadata.fps == 25


def test_joined_transport_streams_are_named(tmp_path):
    """Their packets are marked as damaged, and nothing tells them from damaged ones."""
    parts = [write_clip(tmp_path / f"{first}.ts", 50, (48, 64), fps=25, first=first) for first in (0, 50)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(
        ValueError, match="recordings were joined byte by byte: 1 of 100 packets have lost data; `ffmpeg"
    ):
        read_video(path)


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("sampling", [{"num_frames": 4}, {"fps": 8.0}, {"fps": 8.0, "video_start": 0.2}])
def test_a_header_that_claims_2_to_31_seconds_does_no_harm(tmp_path, backend, sampling):
    """The times of the frames count, not the duration in the headers of the track (`mdhd`) and the file (`mvhd`)."""
    content = write_clip(tmp_path / "a.mp4", 24, SIZE, fps=24).read_bytes()
    assert content.find(b"mdat") < content.find(b"moov")  # so that the places of the frames stay as they are
    honest = read_video(content, backend=backend, **sampling)
    place = content.find(b"mdhd")
    scale = struct.unpack_from(">I", content, place + 16)[0]
    wide = struct.pack(">B3xQQIQ", 1, 0, 0, scale, 2**31 * scale)  # version 1, with 64 bits, is 12 bytes longer
    claims = bytearray(content[: place + 4] + wide + content[place + 24 :])
    for box in (b"moov", b"trak", b"mdia", b"mdhd"):
        start = claims.find(box) - 4
        struct.pack_into(">I", claims, start, struct.unpack_from(">I", claims, start)[0] + 12)
    struct.pack_into(">II", claims, claims.find(b"mvhd") + 16, 1, 2**31)
    read = read_video(bytes(claims), backend=backend, **sampling)
    assert np.array_equal(read.frames, honest.frames) and read.metadata == honest.metadata
