"""Valid files that look damaged, files that are cut short, and pictures that are not shown as they are stored."""

import gc
import io
import os
import struct
from fractions import Fraction

import numpy as np
import pytest
from checkpoints import CLIP as REAL_CLIP
from PIL import Image
from test_video_io import PIXEL_TOLERANCE, av, clip, numbered_frame, numbers_of, remux, write_clip  # noqa: F401

from flashvid_hf import read_video
from flashvid_hf.video import whole_files
from flashvid_hf.video.reading import available_backends

SIZE = (48, 64)


# --- valid files that look damaged ---


def limit_edit_list(path, seconds, start=None):
    """Shorten what the edit list of an MP4 shows; `start` moves its beginning, in units of the stream."""
    content = bytearray(path.read_bytes())
    place = content.find(b"elst")
    scale = int.from_bytes(content[(header := content.find(b"mvhd")) + 16 : header + 20], "big")
    content[place + 12 : place + 16] = struct.pack(">I", round(seconds * scale))
    if start is not None:
        content[place + 16 : place + 20] = struct.pack(">i", start)
    path.write_bytes(content)


@pytest.mark.parametrize("seconds, start", [(2, None), (0.5, None), (2, 2), (1.25, 3)])
def test_an_edit_list_that_shows_a_part(tmp_path, seconds, start):
    path = write_clip(tmp_path / "a.mp4", 120, SIZE, options={"g": "25", "bf": "0"})
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
    limit_edit_list(path, seconds, None if start is None else round(start / unit))
    first = (start or 0) * 24
    result = read_video(path, num_frames=7)
    assert result.metadata.total_num_frames == round(24 * seconds) and result.metadata.fps == 24
    assert numbers_of(result.frames) == [first + index for index in result.metadata.frames_indices]


def test_an_edit_list_of_a_variable_rate(tmp_path):
    times = np.array([0, 40, 80, 3000, 3040, 9000, 9040, 9080, 15000])
    path = write_clip(tmp_path / "a.mp4", 9, SIZE, fps=25, times=times, options={"bf": "0"})
    limit_edit_list(path, 9.1)
    result = read_video(path, fps=2)
    shown = np.searchsorted(times / 1000, np.array(result.metadata.timestamps) + 0.001, side="right") - 1
    assert numbers_of(result.frames) == shown.tolist() and shown.max() < 8
    assert result.metadata.duration == pytest.approx(9.1, abs=0.06)


@pytest.mark.parametrize("milliseconds", [10_000, 2_500, 60_000])
def test_slow_flv(tmp_path, milliseconds):
    path = write_clip(tmp_path / "a.flv", 6, SIZE, fps=30, times=np.arange(6) * milliseconds)
    result = read_video(path, num_frames=6)
    seconds = np.array(result.metadata.timestamps) * 1000
    assert numbers_of(result.frames) == np.floor((seconds + 1) / milliseconds).astype(int).tolist()


@pytest.mark.parametrize("number", [41, 500])
def test_avi_whose_header_counts_too_many(tmp_path, number):
    path = write_clip(tmp_path / "a.avi", 40, SIZE, codec="mpeg4")
    content = bytearray(path.read_bytes())
    header, stream = content.find(b"avih"), content.find(b"strh")
    content[header + 24 : header + 28] = content[stream + 40 : stream + 44] = struct.pack("<I", number)
    path.write_bytes(content)
    result = read_video(path, num_frames=5)
    assert len(result.frames) == 5 and numbers_of(result.frames)[-1] == 39


# --- cut files ---

CUT = {
    "a.gif": dict(codec="gif", pix_fmt="rgb8", fps=25),
    "a.y4m": dict(codec="wrapped_avframe"),
    "a.ts": {},
    "a.avi": dict(codec="mpeg4"),
    "a.png": dict(codec="apng", pix_fmt="rgb24"),
}


@pytest.mark.parametrize("name", CUT)
def test_cut_files_are_errors(tmp_path, name):
    path = tmp_path / name
    if name == "a.png":
        pictures = [Image.fromarray(numbered_frame(number, *SIZE)) for number in range(20)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    elif name == "a.y4m":
        planes = b"".join(b"FRAME\n" + bytes([40 + number]) * (64 * 48 * 3 // 2) for number in range(20))
        path.write_bytes(b"YUV4MPEG2 W64 H48 F24:1 C420jpeg\n" + planes)
    else:
        write_clip(path, 20, SIZE, **CUT[name])
    assert read_video(path, num_frames=20).metadata.total_num_frames == 20
    content = path.read_bytes()
    for part in (0.4, 0.7, 0.95):
        size = int(part * len(content))
        path.write_bytes(content[: size + (size % 188 == 0)])
        with pytest.raises(ValueError, match=r"cannot be read: pyav: (it is (cut short|damaged)|.*Invalid data)"):
            read_video(path, num_frames=2)
    if name in ("a.gif", "a.ts"):
        path.write_bytes(content + b"\0" * 100)
        assert len(read_video(path, num_frames=20).frames) == 20, "something after the end is no damage"


def test_transport_streams_with_larger_packets(tmp_path):
    packets = [b"\x47" + bytes(187) for _ in range(6)]
    for wrap in (lambda packet: packet, lambda packet: bytes(4) + packet, lambda packet: packet + bytes(16)):
        path = tmp_path / "a.ts"
        path.write_bytes(b"".join(map(wrap, packets)))
        assert whole_files.container_of(str(path)) == "transport" and whole_files.missing_end(str(path)) is None
        path.write_bytes(path.read_bytes()[:-50])
        assert "not complete" in whole_files.missing_end(str(path))


def test_space_that_was_reserved_but_not_filled(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 120, (96, 128), seed=0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    with pytest.raises(ValueError, match="it is damaged"):
        read_video(path, num_frames=2)


# --- pictures ---

# The display matrix (a, b, c, d) moves the point (x, y), right and down, to (a x + c y, b x + d y). The functions state
# what a player then shows, for a picture as an array of rows.
ORIENTATIONS = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],  # left and right exchanged
    (1, 0, 0, -1): lambda p: p[::-1],  # top and bottom exchanged
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],  # half a turn
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),  # a quarter turn clockwise
    (0, -1, 1, 0): lambda p: np.rot90(p),  # counter-clockwise
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),  # mirrored at the diagonal from the upper left
    (0, -1, -1, 0): lambda p: p[::-1, ::-1].transpose(1, 0, 2),  # at the other diagonal
}


@pytest.mark.parametrize("matrix", ORIENTATIONS)
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_all_orientations(clip, tmp_path, matrix, backend):  # noqa: F811
    if backend not in available_backends():
        pytest.skip(f"{backend} is not installed")
    content = bytearray(clip("mp4").read_bytes())
    place = content.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    stored = read_video(clip("mp4"), num_frames=3).frames
    if backend == "decord" and a * d - b * c < 0:
        with pytest.raises(ValueError, match="stored mirrored, which decord ignores"):
            read_video(path, num_frames=3, backend=backend)
        return
    result = read_video(path, num_frames=3, backend=backend)
    for found, picture in zip(result.frames, stored, strict=True):
        np.testing.assert_allclose(found.astype(int), ORIENTATIONS[matrix](picture), atol=PIXEL_TOLERANCE)
    assert (result.metadata.height, result.metadata.width) == result.frames.shape[1:3]


@pytest.mark.parametrize("ending", ["h264", "ts", "flv"])
@pytest.mark.parametrize("sizes", [((96, 128), (48, 64)), ((48, 64), (96, 128)), ((96, 128), (128, 96))])
def test_size_changes_in_mid_stream(tmp_path, ending, sizes):
    parts = [write_clip(tmp_path / f"{size}.h264", 20, size, fps=25, options={"bf": "0"}) for size in sizes]
    raw = tmp_path / "raw.h264"
    raw.write_bytes(b"".join(part.read_bytes() for part in parts))
    path = tmp_path / f"a.{ending}"
    if ending == "h264":
        path = raw
    else:
        with av.open(str(raw)) as old, av.open(str(path), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            packets = [packet for packet in old.demux() if packet.size]
            for number, packet in enumerate(packets):
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts, packet.dts, packet.duration = number, number, 1
                new.mux(packet)
    result = read_video(path, num_frames=10)
    assert result.frames.shape == (10, *sizes[0], 3)
    expected = [index % 20 for index in result.metadata.frames_indices]
    assert numbers_of(result.frames) == expected


def write_song(path, codec="libmp3lame"):
    """A second of silence with a cover picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
        for block in range(38):
            frame.rate, frame.pts = 44100, block * 1152
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_song_with_a_cover_picture_is_no_video(tmp_path):
    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "cover.jpg")
    cover = (tmp_path / "cover.jpg").read_bytes()
    path = write_song(tmp_path / "a.mp3")
    content = b"\0image/jpeg\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\0\0" + size + frame + path.read_bytes())
    with pytest.raises(ValueError, match=r"a.mp3' cannot be read: pyav: it has no video, only a cover picture$"):
        read_video(path)


def test_a_song_in_mp4_with_a_cover_picture_is_no_video(tmp_path):
    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "cover.jpg")
    cover = (tmp_path / "cover.jpg").read_bytes()
    path = write_song(tmp_path / "a.m4a", "aac")

    def box(kind, content):
        return struct.pack(">I", 8 + len(content)) + kind + content

    content = path.read_bytes()
    start = content.find(b"moov") - 4
    old = content[start : start + int.from_bytes(content[start : start + 4], "big")]
    assert start + len(old) == len(content), "the headers are at the end, so that they can grow"
    data = box(b"data", struct.pack(">II", 13, 0) + cover)
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    more = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", box(b"covr", data))))
    old = old[: old.find(b"udta") - 4] if b"udta" in old else old
    path.write_bytes(content[:start] + box(b"moov", old[8:] + more))
    for backend in (None, *available_backends()):
        with pytest.raises(ValueError, match=r"a.m4a' cannot be read: \w+: it has no video, .*cover picture$"):
            read_video(path, backend=backend)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.ppm", "a.webp", "picture", "a%d.jpg"])
def test_a_picture_is_a_video_of_one_frame(tmp_path, name):
    picture = Image.fromarray(numbered_frame(5, *SIZE))
    kind = {"jpg": "JPEG", "bmp": "BMP", "ppm": "PPM", "webp": "WEBP"}.get(name[-4:].lstrip("."), "PNG")
    picture.save(tmp_path / name, kind, **({"lossless": True} if kind == "WEBP" else {}))
    Image.fromarray(numbered_frame(9, *SIZE)).save(tmp_path / "a1.jpg")  # what FFmpeg would take for `a%d.jpg`
    found = read_video(tmp_path / name)
    assert found.frames.shape == (1, *SIZE, 3) and numbers_of(found.frames) == [5]


def test_frames_leave_memory_at_once():
    """Without garbage collection. In a forked worker of `num_workers`, collecting a frame of the parent hangs."""
    kinds = ("VideoFrame", "VideoCodecContext", "InputContainer", "VideoReformatter")

    def count():
        return sum(type(thing).__name__ in kinds for thing in gc.get_objects())

    read_video(REAL_CLIP, num_frames=4)
    gc.collect()
    gc.disable()
    try:
        before = count()
        for options in ({"num_frames": 4}, {"fps": 1.0}, {"backend": "pyav", "num_frames": 1}):
            read_video(REAL_CLIP, **options)
        assert count() == before
    finally:
        gc.enable()


LISTS = {
    "concat": b"ffconcat version 1.0\nfile video\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n#EXT-X-ENDLIST\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="a"><Period>'
    b'<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>%s</BaseURL>'
    b"<SegmentBase/></Representation></AdaptationSet></Period></MPD>",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", ["video", "video.mp4", "video.mkv", "video.m3u8"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_files_is_no_video(tmp_path, kind, name):
    """FFmpeg would open what the list names: itself without end, or another file."""
    other = tmp_path / "other.mp4"
    write_clip(other, num_frames=4)
    text = LISTS[kind] % str(other).encode() if b"%s" in LISTS[kind] else LISTS[kind]
    (tmp_path / name).write_bytes(text)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read_video(tmp_path / name, num_frames=1)
    assert "Too many open files" not in str(caught.value)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 5


# --- which stream, and what lies beside the picture ---


def write_two_streams(path, default):
    """A small and a large video of 10 frames; the one with this number has the flag `default`."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10, options={"threads": "1", "bf": "0"}) for _ in range(2)]
        for number, (stream, (height, width)) in enumerate(zip(streams, [SIZE, (96, 128)], strict=True)):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        packets = []
        for stream in streams:
            for index in range(10):
                picture = numbered_frame(index, stream.height, stream.width)
                packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
            packets += stream.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_stream_is_read(tmp_path, default):
    result = read_video(write_two_streams(tmp_path / "a.mkv", default), num_frames=10)
    assert result.frames.shape[1:3] == [SIZE, (96, 128)][default]
    assert numbers_of(result.frames) == list(range(10))


def test_animated_avif(tmp_path):
    """Its first stream is a still."""
    pictures = [Image.fromarray(numbered_frame(index)) for index in range(12)]
    try:
        pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=100)
    except (KeyError, ValueError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    result = read_video(tmp_path / "a.avif", num_frames=12)
    assert numbers_of(result.frames) == list(range(12)) and result.metadata.fps == 10


@pytest.mark.parametrize("name", ["a.avi", "a.mov", "a.mkv", "a.png", "a.jpg"])
def test_exif_inside_frames(tmp_path, name):
    """Cameras write it into each picture. It is a kind of data that PyAV does not know."""
    exif = Image.Exif()
    exif[0x10F] = "a camera"
    path = tmp_path / name
    pictures = [Image.fromarray(numbered_frame(index)) for index in range(1 if name == "a.jpg" else 8)]
    if name in ("a.png", "a.jpg"):
        rest = {"save_all": True, "append_images": pictures[1:], "duration": 100} if name == "a.png" else {}
        pictures[0].save(path, exif=exif, **rest)
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.height, stream.width, stream.pix_fmt = 96, 128, "yuvj420p"
            for index, picture in enumerate(pictures):
                content = io.BytesIO()
                picture.save(content, "JPEG", exif=exif, quality=95)
                packet = av.Packet(content.getvalue())
                packet.stream, packet.pts, packet.dts = stream, index, index
                packet.time_base, packet.is_keyframe = Fraction(1, 10), True
                container.mux(packet)
    assert numbers_of(read_video(path, num_frames=len(pictures)).frames) == [*range(len(pictures))]


def test_pictures_of_16_bits(tmp_path):
    """Depth and X-rays keep what their upper 8 bits say."""
    numbers = np.stack([numbered_frame(index)[..., 0] for index in range(3)])
    pictures = [Image.fromarray(frame.astype(np.uint16) * 256 + 77) for frame in numbers]
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    for frames in (pictures, paths):
        assert np.array_equal(read_video(frames).frames, np.repeat(numbers[..., None], 3, -1))
    with pytest.raises(ValueError, match=r"32-bit numbers \(mode 'F'\), whose range is not known: convert it to 'L'"):
        read_video([Image.fromarray(numbers[0].astype(np.float32))])


def test_pictures_are_upright_from_a_program_too(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    Image.fromarray(numbered_frame(3)).save(tmp_path / "a.png", exif=exif)
    by_name = read_video([str(tmp_path / "a.png")]).frames
    assert by_name.shape == (1, 128, 96, 3)
    assert np.array_equal(read_video([Image.open(tmp_path / "a.png")]).frames, by_name)


def test_open_files(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 6, SIZE)
    with path.open("rb") as file:
        assert numbers_of(read_video(file, num_frames=6).frames) == list(range(6))
    assert numbers_of(read_video(io.BytesIO(path.read_bytes()), num_frames=6).frames) == list(range(6))


@pytest.mark.skipif("decord" not in available_backends(), reason="decord is not installed")
def test_errors_of_decord_show_no_path_of_a_copy(tmp_path):
    content = bytearray(write_clip(tmp_path / "a.mp4", 12, SIZE, fps=24).read_bytes())
    struct.pack_into(">II", content, content.find(b"mdhd") + 16, 1, 2**31)  # frames of hours
    with pytest.raises(ValueError, match="cannot be read: decord: ") as raised:
        read_video(bytes(content), backend="decord")
    assert "/" not in str(raised.value)
