"""Video files by PyAV."""

import errno
import importlib
import math
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from .decoder_types import DamagedVideo, Decoded, NoVideo
from .frame_plan import FramePlan
from .limits import MediaLimits
from .sample_counts import check_sample_counts
from .timing import Timeline, make_timeline
from .whole_files import (
    announced_picture,
    announced_size,
    container_of,
    ends_in_zeros,
    has_another_recording,
    missing_end,
)

# FFmpeg chooses the demuxer by the content of a file. Some demuxers read lists, and open every file or address that
# the list names: its own name without end, or a file that the user may not read. These here read one file. image2 would
# read other files for a name like `a%d.jpg`: `pattern_type` forbids it.
_DEMUXERS = (
    *("3gp", "apng", "asf", "avi", "av1", "dhav", "dirac", "dv", "flv", "gif", "gxf", "h261", "h263", "h264", "hevc"),
    *("ivf", "live_flv", "m4v", "matroska", "mjpeg", "mov", "mp4", "mpeg", "mpegts", "mpegvideo", "mpjpeg", "mxf"),
    *("nsv", "nut", "nuv", "obu", "ogg", "rm", "swf", "vc1", "vvc", "webm", "wtv", "yuv4mpegpipe"),
    *("avs2", "avs3", "cavsvideo", "dnxhd", "evc", "flic", "kux", "moflex", "pva", "ty", "vivo"),
    *("bink", "dxa", "ipmovie", "roq", "smk", "smush", "thp", "wc3movie"),  # films of games
    "image2",  # single pictures, by the name of the file, and by its content
    *("bmp_pipe", "dpx_pipe", "exr_pipe", "gif_pipe", "j2k_pipe", "jpeg_pipe", "jpegls_pipe", "jpegxl_pipe"),
    *("pam_pipe", "pbm_pipe", "pcx_pipe", "pgm_pipe", "png_pipe", "ppm_pipe", "qoi_pipe", "tiff_pipe", "webp_pipe"),
    *("aac", "aiff", "ape", "flac", "mp3", "wav"),  # songs, which get an error that says so
)
_OPENING = {"format_whitelist": ",".join(_DEMUXERS), "protocol_whitelist": "file", "pattern_type": "none"}
_QUARTERS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of quarter turns, counterclockwise
_NO_TIME = -(2**63)  # FFmpeg's AV_NOPTS_VALUE
_DEFAULT, _COVER_PICTURE = 0x1, 0x400  # FFmpeg's AV_DISPOSITION_DEFAULT and AV_DISPOSITION_ATTACHED_PIC
# Seconds. Where time falls back by more, a second recording begins: files that were joined, a recorder that was started
# again. Frames of the same recording that are stored out of order are closer together.
_RESTART = 1.0
# Each thread of a decoder keeps about two frames. So many pixels at once: 16 threads (FFmpeg's most) for 1920 x 1080,
# 4 for 3840 x 2160, and 1 for the largest frames.
_PIXELS_OF_THREADS, _MOST_THREADS = 2**25, 16


class _Packet(NamedTuple):
    """One packet of the video stream. Times are in the stream's unit, None where the file has none.

    Args:
        hidden: whether the edit list says that its frame is decoded, but not shown.
    """

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    hidden: bool


class _Packets(Sequence[_Packet]):
    """The packets of the video stream, kept in arrays: a video of a day has millions of them."""

    def __init__(self):
        self._times, self._flags = array("q"), bytearray()

    def append(self, packet: _Packet) -> None:
        self._times.extend(_NO_TIME if time is None else time for time in packet[:3])
        self._flags.append(packet.is_key | packet.hidden << 1)

    def __len__(self) -> int:
        return len(self._flags)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        flags = self._flags[place]
        first = 3 * (place % len(self))
        pts, dts, duration = (None if time == _NO_TIME else time for time in self._times[first : first + 3])
        return _Packet(pts, dts, duration or 0, bool(flags & 1), bool(flags & 2))


def read_pyav(path: str, plan: FramePlan) -> Decoded:
    """The wanted frames of a video file, each decoded from the keyframe before it.

    transformers' reader is not used: it takes the frame count from the header (0 in Matroska, WebM, MPEG-TS, fragmented
    MP4), ignores rotation and decodes every frame. Here the packets' timestamps say which frames exist and when they
    are shown, without decoding. Each wanted frame must carry its timestamp.

    Raises:
        NoVideo: the file has only a cover picture.
        DamagedVideo: the file is damaged or cut short.
        TooLarge: the file exceeds a limit.
    """
    av = importlib.import_module("av")
    check_sample_counts(path, plan.limits)
    picture = announced_picture(path)
    if picture is not None:
        plan.limits.check_frame(*picture)
        if min(picture) < 1:
            raise DamagedVideo(f"it is damaged: by its header each picture has {picture[0]} x {picture[1]} pixels")
    try:
        with _open(av, path, plan.limits) as (container, stream):
            try:
                return _decode(av, container, stream, path, plan)
            except av.error.FFmpegError as error:
                if not isinstance(error, ValueError):  # PyAV's errors of data and arguments, whose names change
                    raise
                # The file opens, so its content is at fault. A frame that is larger than the header says ends here too.
                bound = f"or a frame has more than {plan.limits.max_frame_pixels} pixels (`max_frame_pixels`)"
                raise DamagedVideo(f"it is damaged: {_words(error)}, {bound}") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"it is damaged, or of a kind that FFmpeg cannot read: {_words(error)}") from error


def _words(error: Any) -> str:
    """FFmpeg's error without its number and the path, which may be that of a copy."""
    if error.errno in (errno.EBUSY, errno.EPERM):  # no device and no permission is meant
        return "it refuses the header"
    return error.strerror or type(error).__name__


@contextmanager
def _open(av: Any, path: str, limits: MediaLimits) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, whose decoder refuses frames that are larger than the limit."""
    # FFmpeg checks each frame before it takes memory for it, also while it opens the file. It counts rows filled up to
    # 64 pixels, which are at most a quarter more where rows have 256. Its own limit is 2**31.
    bound = {"max_pixels": str(int(min(1.25 * limits.max_frame_pixels + 2**16, 2**31 - 1)))}
    # Before PyAV 17.1, options for streams that are found while a file opens (as in MPEG-PS) crash the process.
    version = tuple(map(int, re.findall(r"\d+", av.__version__)[:2]))
    early = bound if version >= (17, 1) else {}
    with av.open(path, options=early, container_options=_OPENING) as container:
        stream = _find_stream(container)
        limits.check_frame(stream.width, stream.height)
        stream.codec_context.options = bound
        stream.thread_type = "AUTO"
        threads = max(_PIXELS_OF_THREADS // max(stream.width * stream.height, 1), 1)
        if threads < _MOST_THREADS:
            stream.codec_context.thread_count = min(threads, (os.cpu_count() or 1) + 1)
        yield container, stream


def _find_stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("no video stream can be found in it")
    found = []
    for stream in container.streams.video:
        flags = getattr(stream.disposition, "value", stream.disposition)  # an enumeration before PyAV 15
        if not flags & _COVER_PICTURE:
            # Several streams are cameras, sizes, or the still of an animated AVIF. Players take the default one.
            found.append((stream.frames != 1, bool(flags & _DEFAULT), stream))
    if not found:
        raise NoVideo("it has no video, only a cover picture")
    return max(found, key=lambda rank: rank[:2])[2]  # the first of equal ones


def _decode(av: Any, container: Any, stream: Any, path: str, plan: FramePlan) -> Decoded:
    packets = _read_packets(container, stream, path, plan.limits)
    times = [packet.pts for packet in packets if not packet.hidden]
    if not times:
        raise ValueError("it is damaged or cut short: it has no frames")
    shown = sorted(times) if None not in times else []
    restart = _RESTART / float(stream.time_base)
    is_one = all(before - after < restart for before, after in pairwise(p.dts for p in packets if p.dts is not None))
    if is_one and len(shown) == len(times) and all(before < after for before, after in pairwise(shown)):
        timeline = _make_timeline(container, stream, packets, shown, container_of(path))
        indices = plan.choose(timeline.total, timeline.fps)
        moments = [shown[timeline.frame_at(index)] for index in indices]
        frames = _seek(container, stream, sorted(set(moments)), packets, plan)
        if frames is not None:
            return [frames[moment] for moment in moments], indices, timeline.total, timeline.fps
    # The packets' timestamps are missing or are not those of the frames (raw streams, AVI): decode once to count the
    # frames, and once more to keep the wanted ones.
    clock = [(frame.pts, frame.dts) for frame in _iterate(av, path, plan.limits)]
    # In these containers each packet is a frame, but VP8 also has packets that are never shown. Matroska gives frames
    # before a cut no timestamp, so only packets with a timestamp are counted.
    timed = sum(time is not None for time in times)
    frame_per_packet = container_of(path) in ("quicktime", "matroska") and stream.codec_context.name != "vp8"
    if len(clock) < timed and frame_per_packet:
        raise DamagedVideo(f"it is damaged: {timed} packets hold {len(clock)} frames")
    moments = _frame_times(clock, packets, restart)
    if moments is None:  # no times at all: the header's rate is all that is known
        timeline = Timeline(len(clock), float(stream.average_rate or stream.guessed_rate or 0) or None)
    else:
        timeline = _make_timeline(container, stream, packets, moments, container_of(path))
    indices = plan.choose(timeline.total, timeline.fps)
    numbers = [timeline.frame_at(index) for index in indices]
    found, wanted = {}, set(numbers)
    for number, frame in enumerate(_iterate(av, path, plan.limits, stop=numbers[-1])):
        if number in wanted:
            found[number] = plan.keep(_to_picture(frame, plan.source_size))
    return [found[number] for number in numbers if number in found], indices, timeline.total, timeline.fps


def _read_packets(container: Any, stream: Any, path: str, limits: MediaLimits) -> _Packets:
    """All packets of the stream in the order of the file.

    Raises:
        DamagedVideo: packets are missing or incomplete.
        TooLarge: there are too many.
    """
    packets, start, end, num_damaged, size, place = _Packets(), 0.0, 0.0, 0, 0, 0
    for packet in container.demux():
        if packet.size == 0 and packet.dts is None:  # end-of-stream marker
            continue
        if packet.pts is not None and packet.time_base:  # every stream: the header states the longest duration
            start = min(start, float(packet.pts * packet.time_base))  # below 0 if the clock of MPEG-TS starts anew
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            times = (packet.pts, packet.dts, packet.duration or 0)
            packets.append(_Packet(*times, packet.is_keyframe, packet.is_discard))
            limits.check("max_file_frames", len(packets), "the video has more frames")
            num_damaged, size = num_damaged + packet.is_corrupt, packet.size
            place = max(place, (packet.pos or 0) + size)
    counted, duration = stream.frames, (container.duration or 0) / 1e6  # microseconds
    # A frame may be shown for long: 10 s in a video of 0.1 frames a second.
    shown = sorted(packet.pts for packet in packets if packet.pts is not None)
    longest = max((float((b - a) * stream.time_base) for a, b in pairwise(shown)), default=0.0)
    ends_early = end - start + 1 + longest < duration
    announced = announced_size(path)
    if announced:
        # The header may count more than there is to show: samples that the edit list leaves out, frames that were
        # dropped. Then the index says what the demuxer has to find (PyAV of these days has it, 14 has not).
        expected = len(getattr(stream, "index_entries", None) or ()) if counted else 0
        is_short = os.path.getsize(path) < announced or len(packets) < expected
        is_short = is_short or (ends_early and ends_in_zeros(path))
    else:
        is_short = len(packets) < counted or ends_early
    if is_short:
        found = f"{len(packets)} of {counted or '?'} packets, {end - start:.1f} of {duration:.1f} seconds"
        raise DamagedVideo(f"it is damaged or cut short, found {found}")
    if num_damaged:
        raise DamagedVideo(
            f"it is damaged, or recordings were joined byte by byte: {num_damaged} of {len(packets)} packets have lost "
            "data; `ffmpeg -i a.ts -c copy b.mkv` saves the others"
        )
    if has_another_recording(path, place):
        raise DamagedVideo("recordings were joined byte by byte, and not all of them can be read: read one by one")
    missing = missing_end(path, size)
    if missing:
        raise DamagedVideo(f"it is cut short: {missing}")
    return packets


def _make_timeline(
    container: Any, stream: Any, packets: Sequence[_Packet], shown: Sequence[int], kind: str | None
) -> Timeline:
    """The timeline of frames that are shown at these ascending times in the stream's unit."""
    unit = float(stream.time_base)
    last: list[float] = []  # seconds for which the last frame is shown, by different parts of the file
    if kind == "quicktime":
        # Its headers count what the edit list leaves out. A packet lasts up to the next one in the file, so only the
        # length of the last packet is the file's own. It counts if that is the frame that is shown last.
        timed = [packet for packet in packets if not packet.hidden and packet.pts is not None]
        is_known = bool(timed) and len(timed) >= stream.frames and timed[-1].pts == shown[-1]
        lengths = [timed[-1].duration] if is_known else []
    else:
        end = (stream.start_time or 0) + stream.duration if stream.duration else shown[-1]
        lengths = [end - shown[-1], max((p.duration for p in packets if p.pts == shown[-1]), default=0)]
        if len(container.streams) == 1 and container.duration:  # from time 0, or from the first frame
            ends = [container.duration / 1e6, container.duration / 1e6 + shown[0] * unit]
            last = sorted(end - shown[-1] * unit for end in ends)
    last = [length * unit for length in lengths] + last
    rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
    held = lengths[-1] * unit if lengths else 0.0  # by the packet itself
    return make_timeline([time * unit for time in shown], rates, last, unit, held)


def _frame_times(
    clock: Sequence[tuple[int | None, int | None]], packets: Sequence[_Packet], restart: float
) -> list[int] | None:
    """When each decoded frame is shown, in the stream's unit; None if that is unknown.

    Args:
        clock: `pts` and `dts` of every frame in the order in which the decoder gives them.
        restart: where time falls back by more, a second recording begins, and its time goes on from there.
    """
    times = [pts for pts, _ in clock if pts is not None]
    if clock and len(times) == len(clock):
        usual = sorted(after - before for before, after in pairwise(times))[len(times) // 2] if len(times) > 2 else 1
        added, joined = 0, times[:1]
        for before, after in pairwise(times):
            if before - after > restart:
                added += before + usual - after
            joined.append(after + added)
        if joined == sorted(joined):
            return joined
    # AVI has no times of presentation, but an empty packet in place of each dropped frame.
    decoded = [packet.dts for packet in packets if packet.dts is not None]
    return sorted(decoded) if clock and len(decoded) == len(clock) else None


def _seek(
    container: Any, stream: Any, wanted: list[int], packets: Sequence[_Packet], plan: FramePlan
) -> dict[int, torch.Tensor] | None:
    """The frames at the ascending timestamps `wanted`, each decoded from the nearest keyframe before it.

    Returns None if the decoder leaves out a wanted frame, or a shown frame between the keyframe and a wanted one.
    """
    shown = sorted(packet.pts for packet in packets if not packet.hidden and packet.pts is not None)
    keys = sorted(packet.pts for packet in packets if packet.is_key and packet.pts is not None)
    # A frame may refer to later frames that are decoded before it: those must be undamaged too.
    coded = [packet.pts for packet in packets if packet.pts is not None]
    sources = dict(zip(coded, accumulate(coded, max), strict=True))
    frames: dict[int, torch.Tensor] = {}
    targets, seen = set(wanted), set()
    decoder: Iterator[Any] = iter(())
    now: float = -math.inf
    for moment in wanted:
        key = keys[max(bisect_right(keys, moment) - 1, 0)] if keys else moment
        if key > now:  # a keyframe lies ahead: jump to it instead of decoding all frames up to it
            container.seek(key, stream=stream)
            decoder, now = container.decode(stream), -math.inf
        while now < sources[moment]:
            frame = next(decoder, None)
            if frame is None:
                break
            now = -math.inf if frame.pts is None else frame.pts
            if now < key:  # precedes the keyframe, and refers to frames that the jump left out
                continue
            if frame.is_corrupt:
                raise DamagedVideo(f"it is damaged at {frame.time:.2f} s")
            plan.limits.check_frame(frame.width, frame.height)
            seen.add(now)
            if now in targets:
                frames[int(now)] = plan.keep(_to_picture(frame, plan.source_size))
        if now < sources[moment] or not seen.issuperset(shown[bisect_left(shown, key) : bisect_right(shown, moment)]):
            return None
    return frames


def _iterate(av: Any, path: str, limits: MediaLimits, stop: int | None = None) -> Iterator[Any]:
    """All frames in the order in which they are shown, up to the one with the number `stop`."""
    with _open(av, path, limits) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise DamagedVideo(f"it is damaged at frame {number}")
            limits.check_frame(frame.width, frame.height)
            yield frame
            if number == stop:
                return


def _to_picture(frame: Any, size: tuple[int, int] | None) -> torch.Tensor:
    """The picture as it is to be seen, with shape (H, W, 3).

    Args:
        size: height and width of the first picture; None for the first one itself. A stream may change its size, which
            players hide: they scale every picture to the size of the window.
    """
    a, b, c, d = _display_matrix(frame)
    is_turned = abs(b) + abs(c) > abs(a) + abs(d)
    height, width = size or ((frame.width, frame.height) if is_turned else (frame.height, frame.width))
    stored = (height, width) if is_turned else (width, height)
    picture = torch.as_tensor(frame.to_ndarray(format="rgb24", width=stored[0], height=stored[1]))
    if is_turned:
        picture = picture.transpose(0, 1)
    flips = [axis for axis, sign in enumerate((b, c) if is_turned else (d, a)) if sign < 0]
    return picture.flip(flips)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """How a stored picture is to be seen: the point (x, y), right and down, moves to (a x + c y, b x + d y).

    Phones store upright video on its side, and front cameras mirror it. Other angles than quarter turns are rounded.
    """
    # `frame.side_data` would make a cycle, in which the frame stays in memory until garbage is collected. In a forked
    # process that hangs, because the frame's threads are not there.
    try:
        data = importlib.import_module("av").sidedata.sidedata.SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # a kind of data that PyAV does not know, such as EXIF. Then only the angle can be read
        x, y = _QUARTERS[round(frame.rotation / 90) % 4]
        return x, -y, y, x
    if data is None:
        return 1, 0, 0, 1
    values = torch.frombuffer(bytearray(bytes(data)), dtype=torch.int32).tolist()
    return values[0], values[1], values[3], values[4]
