"""Whether a file is whole, by the marks of its format: sizes in headers, end marks, packets of a fixed size."""

import os
from collections.abc import Iterator
from typing import BinaryIO

_EBML = b"\x1aE\xdf\xa3"  # the beginning of every Matroska file


def container_of(path: str) -> str | None:
    """The container by the first bytes of the file, or None.

    "quicktime" (MP4, MOV), "matroska" (MKV, WebM), "riff" (AVI, WebP), "gif", "png", "y4m" or "transport" (MPEG-TS).
    """
    with open(path, "rb") as file:
        head = file.read(4 * 204)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "quicktime"
    marks = {_EBML: "matroska", b"RIFF": "riff", b"GIF8": "gif", b"\x89PNG": "png", b"YUV4": "y4m"}
    return marks.get(head[:4]) or ("transport" if _transport_packets(head) else None)


def quicktime_boxes(path: str) -> Iterator[tuple[bytes, int]]:
    """The kind of every top-level box of an MP4 or QuickTime file, and the byte at which it ends by its own header."""
    end = 0
    with open(path, "rb") as file:
        while len(head := file.read(16)) >= 8:
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:], "big") if size == 1 else size
            if size < 8:  # the last box may have size 0, up to the end of the file
                return
            end += size
            yield head[4:8], end
            file.seek(end)


def announced_size(path: str) -> int:
    """The least size of a file in bytes by its own headers; 0 if they do not state it.

    This finds losses that are shorter than a second, which the header's duration does not show, and it works in
    containers without a frame count.
    """
    container = container_of(path)
    if container == "quicktime":
        return max((end for kind, end in quicktime_boxes(path) if kind in (b"moov", b"moof", b"mdat")), default=0)
    if container not in ("matroska", "riff"):
        return 0
    with open(path, "rb") as file:
        return _riff_size(file) if container == "riff" else _matroska_size(file)


def announced_picture(path: str) -> tuple[int, int] | None:
    """Width and height of each picture by the header of a Y4M file; None in other formats, whose streams state them.

    FFmpeg refuses to open a Y4M file of very large pictures, and does not say why.
    """
    if container_of(path) != "y4m":
        return None
    with open(path, "rb") as file:
        tags = {tag[:1]: tag[1:] for tag in file.readline(1024).split()[1:]}
    try:
        return int(tags[b"W"]), int(tags[b"H"])
    except (KeyError, ValueError):
        return None


def missing_end(path: str, frame_bytes: int = 0) -> str | None:
    """What the end of a file lacks, in a format whose headers state no size; None if nothing is known to be missing.

    Args:
        frame_bytes: bytes of each picture, for Y4M.
    """
    container = container_of(path)
    with open(path, "rb") as file:
        if container == "gif":
            return None if _reaches_end_of_gif(file) else "the end mark of the GIF is missing"
        if container == "png":
            return None if _reaches_end_of_png(file) else "the end mark of the PNG is missing"
        if container == "y4m" and frame_bytes:
            return None if _has_whole_pictures(file, frame_bytes) else "the last picture is not complete"
        if container == "transport":
            return None if _has_whole_packets(file) else "the last packet of the MPEG transport stream is not complete"
    return None


def has_another_recording(path: str, place: int) -> bool:
    """Whether a recording that was joined byte by byte is left over, which FFmpeg and players do not read.

    Args:
        place: the byte in the file at which the last packet ends.
    """
    container = container_of(path)
    if container == "quicktime":
        return [kind for kind, _ in quicktime_boxes(path)].count(b"moov") > 1
    with open(path, "rb") as file:
        if container == "riff":
            forms = [form for form, _ in _riff_chunks(file)]
            return b"AVI " in forms[1:]  # the other chunks of a long AVI file are called AVIX
        if container == "matroska":
            file.seek(place)
            before = b""
            while block := file.read(2**20):
                if _EBML in before + block:
                    return True
                before = block[-3:]
    return False


def ends_in_zeros(path: str) -> bool:
    """Whether the last 4 KiB are zero, as in a download that reserved the space but did not finish."""
    with open(path, "rb") as file:
        file.seek(-min(4096, os.path.getsize(path)), os.SEEK_END)
        return not any(file.read())


def _matroska_size(file: BinaryIO) -> int:
    size = 0
    for _ in range(2):  # a header element, then one segment with all the rest
        file.seek(size + 4, os.SEEK_CUR)  # the content of the element, and the name of the next one
        first = file.read(1)
        num_bytes = 9 - (first[0].bit_length() if first else 0)
        if num_bytes == 9:
            return 0
        digits = 7 * num_bytes
        size = int.from_bytes(first + file.read(num_bytes - 1), "big") & ((1 << digits) - 1)
    is_known = size != (1 << digits) - 1  # all ones in a recording that was not finished
    return file.tell() + size if is_known else 0


def _riff_size(file: BinaryIO) -> int:
    end = max((end for _, end in _riff_chunks(file)), default=0)
    return max(end - 9, 0)  # some programs count the 8 bytes of the header or leave out the last byte, which is padding


def _riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The form of each chunk on the top level, and where it ends. Long AVI files have several."""
    end = 0
    while (head := file.read(12))[:4] == b"RIFF" and len(head) >= 8:
        size = int.from_bytes(head[4:8], "little")
        if size in (0, 0xFFFFFFFF):  # a recording that was not finished
            break
        end += 8 + size + size % 2
        yield head[8:], end
        file.seek(end)


def _reaches_end_of_gif(file: BinaryIO) -> bool:
    file.seek(10)
    _skip_colours(file, file.read(3)[:1])
    while kind := file.read(1):
        if kind == b";":
            return True
        if kind == b",":  # a picture: place and size, colours, the size of a code
            _skip_colours(file, file.read(9)[8:])
            file.seek(1, os.SEEK_CUR)
        elif kind == b"!":
            file.seek(1, os.SEEK_CUR)
        else:  # not a GIF's block: the decoder has to judge it
            return True
        while size := file.read(1):  # blocks of up to 255 bytes, the last one is empty
            if size == b"\0":
                break
            file.seek(size[0], os.SEEK_CUR)
    return False


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)


def _reaches_end_of_png(file: BinaryIO) -> bool:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        file.seek(int.from_bytes(head[:4], "big") + 3, os.SEEK_CUR)  # the content, and all but one byte of its checksum
        if not file.read(1):
            return False
        if head[4:] == b"IEND":
            return True
    return False


def _has_whole_pictures(file: BinaryIO, frame_bytes: int) -> bool:
    end = os.fstat(file.fileno()).st_size
    file.readline(1024)
    while file.tell() < end:
        if not file.readline(1024).endswith(b"\n") or file.tell() + frame_bytes > end:
            return False
        file.seek(frame_bytes, os.SEEK_CUR)
    return True


def _transport_packets(head: bytes) -> tuple[int, int] | None:
    """Where the first packet of an MPEG transport stream starts, and the bytes of each packet."""
    for size, start in ((188, 0), (192, 4), (204, 0)):  # plain; with times (M2TS); with error correction
        if len(head) > start + 3 * size and all(head[start + i * size] == 0x47 for i in range(4)):
            return start, size
    return None


def _has_whole_packets(file: BinaryIO) -> bool:
    start, size = _transport_packets(file.read(4 * 204)) or (0, 1)
    end = os.fstat(file.fileno()).st_size
    rest = end % size
    file.seek(end - rest + start)
    return rest <= start or file.read(1) != b"\x47"  # other bytes there are no packet, but were added at the end
