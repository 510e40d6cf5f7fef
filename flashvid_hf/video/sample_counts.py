"""How many samples an MP4 or QuickTime file announces.

A few bytes can announce any number, and FFmpeg takes memory for all of them when it opens the file: 5 GB for 80
million.
"""

import io
import os
import struct
import zlib
from array import array
from dataclasses import dataclass, field
from typing import BinaryIO

from .decoder_types import DamagedVideo
from .limits import MediaLimits

# Boxes in which FFmpeg looks for other boxes.
_NESTED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"tref", b"udta", b"cmov")
_MOVED = (b"hoov", b"free")  # some programs hide the header so
_DEEPEST = 10  # levels of boxes, as in FFmpeg
# Where tables state a number: of all samples, and of the samples of a fragment.
_NUMBERS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
_RUNS = (b"stts", b"ctts")  # tables of pairs: a number of samples, and the time of each
_LARGEST_HEADER = 2**26  # bytes of a header that is stored compressed, which only files from before 2001 have
# How many samples of uncompressed sound a byte of the file may have. Chunks may be of different sizes, and old formats
# compress a little. FFmpeg takes 24 bytes for 1024 of these samples.
_SLACK = 64


@dataclass
class _Track:
    """The tables of a track, or of all fragments.

    Args:
        share: how many times the limit on frames its samples may be. Sound has up to twice as many as a video.
    """

    share: int = 2
    handlers: set[bytes] = field(default_factory=set)
    numbers: list[int] = field(default_factory=list)
    in_fragments: int = 0
    durations: list[tuple[int, int]] = field(default_factory=list)  # number of samples, and the duration of each
    chunks: int = 0
    most_in_a_chunk: int = 0

    @property
    def is_plain_sound(self) -> bool:
        """Uncompressed sound has a sample for each moment, so there are very many. FFmpeg reads them in chunks."""
        is_sound = b"soun" in self.handlers and b"vide" not in self.handlers
        return is_sound and len(self.durations) == 1 and self.durations[0][1] == 1

    def check(self, size: int, limits: MediaLimits) -> None:
        most, is_sound = max([*self.numbers, self.in_fragments]), self.is_plain_sound
        if not is_sound:
            share = 1 if b"vide" in self.handlers else self.share
            limits.check("max_file_frames", most / share, "a track of the file has more frames")
        bytes_of = _SLACK * size if is_sound else size
        if max(most, self.chunks * self.most_in_a_chunk if is_sound else 0) > bytes_of:
            raise DamagedVideo(f"it is damaged or cut short: a track has {most} samples, and the file {size} bytes")


def check_sample_counts(path: str, limits: MediaLimits) -> None:
    """Compare the numbers of samples that the tables of a file state with the limit; other formats have no such tables.

    Raises:
        TooLarge: a track has too many samples.
        DamagedVideo: the numbers are impossible.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        others = _Track(share=3)  # the fragments have video and sound
        _walk(file, 0, size, 0, others, size, limits)
        others.check(size, limits)


def _walk(file: BinaryIO, start: int, end: int, depth: int, track: _Track, size: int, limits: MediaLimits) -> None:
    """Go through the boxes between two places of the file.

    Args:
        track: where the numbers go. A box of its own for a track is checked as soon as it has been read.
        size: of the whole file.
    """
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        length, kind, content = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, content = int.from_bytes(head[8:], "big"), 16
        elif length == 0:  # up to the end
            length = end - start
        if length < content:
            return
        first, last = start + content, min(start + length, end)
        if kind in (*_NESTED, *_MOVED) and depth < _DEEPEST:
            inner = _Track() if kind == b"trak" else track
            _walk(file, first, last, depth + 1, inner, size, limits)
            if inner is not track:
                inner.check(size, limits)
        elif kind == b"cmvd" and depth < _DEEPEST:
            file.seek(first + 4)
            unpacked = zlib.decompressobj().decompress(file.read(min(last - first, _LARGEST_HEADER)), _LARGEST_HEADER)
            _walk(io.BytesIO(unpacked), 0, len(unpacked), depth + 1, track, size, limits)
        else:
            file.seek(first)
            _read_table(file, kind, last - first, track)
        start += length


def _read_table(file: BinaryIO, kind: bytes, length: int, track: _Track) -> None:
    """Add what a table says to the numbers of its track."""
    if kind == b"hdlr":
        track.handlers.add(file.read(12)[8:])
    elif kind in _NUMBERS:
        number = int.from_bytes(file.read(_NUMBERS[kind] + 4)[-4:], "big")
        if kind == b"trun":
            track.in_fragments += number
        else:
            track.numbers.append(number)
    elif kind in (b"stco", b"co64"):
        track.chunks += int.from_bytes(file.read(8)[4:], "big")
    elif kind in _RUNS:
        numbers = _entries(file, length, 2)
        track.numbers.append(sum(numbers[::2]))
        if kind == b"stts":
            track.durations += zip(numbers[:4:2], numbers[1:4:2], strict=True)  # two say that there are several
    elif kind == b"stsc":
        track.most_in_a_chunk = max([track.most_in_a_chunk, *_entries(file, length, 3)[1::3]])


def _entries(file: BinaryIO, length: int, width: int) -> array:
    """The numbers of a table, `width` in each of its entries."""
    count = int.from_bytes(file.read(8)[4:], "big")
    count = min(count, max(length - 8, 0) // (4 * width))
    numbers = array("I", file.read(4 * width * count))
    if struct.pack("=H", 1) != struct.pack(">H", 1):
        numbers.byteswap()
    return numbers
