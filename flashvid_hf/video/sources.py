"""Where a video or a picture comes from: paths, URLs, lists of pictures, and rows of a data set."""

import base64
import importlib
import io
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import unquote

from transformers.image_utils import load_image

from .limits import DEFAULT_LIMITS, MediaLimits

FILE_TYPES = (str, bytes, os.PathLike)
# Functions that provide the content of a URL as a local file, by its scheme, or by "bytes" for the bytes of a file.
# Their arguments are the source, its name in errors, and what it is ("video" or "image"). The package adds
# `fetch_file`. The code of a model's folder has no such functions: it reads videos from local files only.
FETCHERS: dict[str, Callable[..., AbstractContextManager[str]]] = {}
# The beginning of a picture in base64. A shorter text, and one with other characters, is the path of a picture.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{80}")
# Formats of pictures that Pillow may read, those that people exchange. Others are rare and their readers large; that of
# EPS starts another program. HEIF needs a plugin of Pillow.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)


_WORD = re.compile(r"[^\s'\"`(<]+")
_SCHEME = re.compile(r"(?:https?|ftp|file):[/\\\s]*", re.IGNORECASE)


def hide_user(text: str) -> str:
    """A text in which URLs, also malformed ones, have `...` for the user and the password before their host."""
    return _WORD.sub(lambda word: hide_user_of(word[0]), text)


def hide_user_of(address: str) -> str:
    """The same for a single address, in which spaces and new lines may stand before the host."""
    at = max(address.rfind("@"), address.rfind("\uff20"))
    if at < 0:
        return address
    scheme = _SCHEME.match(address)
    user = address[scheme.end() if scheme else 0 : at]
    if ":" not in user and (not scheme or re.search(r"[/?#]", user)):
        return address  # the `@` stands in a path
    return f"{scheme[0].strip() if scheme else ''}...@{address[at + 1 :]}"


def label_of(source: Any) -> str:
    """A source as errors show it: a path or a URL is quoted, not too long, and without a user."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if not isinstance(source, (str, os.PathLike)):
        return f"{source!r:.60}"
    text = hide_user_of(os.fspath(source))
    return repr(text if len(text) <= 300 else f"{text[:60]}...")


def scheme_of(address: str) -> str:
    """The scheme of a URL in lower case; of a path whatever stands before its first colon."""
    return address.partition(":")[0].lower()


def file_of_url(url: str) -> str:
    """The path that a `file:` URL names.

    `#` and `?` belong to the name, because a file has neither a fragment nor a query. Percent signs are decoded if a
    file of the decoded name exists, or none of the literal name. `file://name`, without a host or with
    `file://localhost/`, is the file `name`, as qwen-vl-utils has it.
    """
    path = url.partition(":")[2]
    if path.startswith("//"):
        path = path[2:].removeprefix("localhost") if path[2:].startswith("localhost/") else path[2:]
    if re.match(r"/[A-Za-z]:", path):  # "/C:/talk.mp4"
        path = path[1:]
    decoded = unquote(path)
    return path if os.path.exists(path) and not os.path.exists(decoded) else decoded


def unpack_source(source: Any) -> Any:
    """The content of an open file, the file in a row of a data set (`{"path": ..., "bytes": ...}`), or the source."""
    if isinstance(source, io.IOBase):
        source = source.read()
    if isinstance(source, Mapping) and source and source.keys() <= {"path", "bytes"}:
        return source.get("bytes") or source.get("path")
    return source


def is_file(video: Any) -> bool:
    """Whether this is a file: a path, a URL or bytes; anything else is decoded frames or a list of pictures."""
    return isinstance(video, (*FILE_TYPES, bytearray, memoryview))


def is_list_of_files(video: Any) -> bool:
    """Whether this is a list of files or URLs; as one video these are pictures, its frames."""
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(isinstance(file, FILE_TYPES) for file in video)


def load_picture(source: Any, limits: MediaLimits = DEFAULT_LIMITS) -> Any:
    """A PIL image, RGB and upright.

    Args:
        source: a path, an `http(s)://`, `file://` or `data:image/...;base64,` URL, the bytes of a file, base64, or a
            PIL image.
        limits: what a picture must not exceed, checked before it is decoded. In the code of a model's folder, Pillow's
            own limit, which is the default, comes first for `http(s)`.

    Raises:
        ValueError: it cannot be read, or exceeds a limit.
    """
    source = unpack_source(source)
    label = label_of(source)
    if isinstance(source, str) and (scheme := scheme_of(source)) in FETCHERS and scheme in ("http", "https"):
        with FETCHERS[scheme](source, label, "image") as path:
            return _load_picture(path, label, limits)
    return _load_picture(source, label, limits)


def _load_picture(source: Any, label: str, limits: MediaLimits) -> Any:
    try:
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        if isinstance(source, str) and ":" in source:
            scheme = scheme_of(source)
            if scheme == "file":
                source = file_of_url(source)
            elif scheme in ("http", "https", "data"):  # transformers knows them in lower case only
                source = scheme + source[len(scheme) :]
        if isinstance(source, str) and re.match("https?://", source):
            source = load_image(source)
            _check_size(source, limits)
        elif isinstance(source, (str, bytes)):
            source = _open_picture(io.BytesIO(source) if isinstance(source, bytes) else _find_content(source), limits)
        return load_image(_as_8_bits(source))
    except Exception as error:  # from the HTTP client, PIL or the file system
        raise ValueError(f"the image {label} cannot be read: {hide_user(str(error))[:500]}") from error


def _as_8_bits(picture: Any) -> Any:
    """A PIL image whose pixels have 8 bits; of 16 bits (depth, X-rays) the upper 8, as FFmpeg does it for videos."""
    mode = getattr(picture, "mode", "")
    if mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {mode!r}), whose range is not known: convert it to 'L'")
    if not mode.startswith("I;16"):
        return picture
    pixels = picture.tobytes()
    upper = pixels[::2] if mode == "I;16B" else pixels[1::2]
    return importlib.import_module("PIL.Image").frombytes("L", picture.size, upper)


def _find_content(text: str) -> Any:
    """The path of a picture, or the content of one in base64."""
    if os.path.isfile(text):
        return text
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif not _BASE64.match(text):
        raise ValueError("it is a directory" if os.path.isdir(text) else "it does not exist")
    return io.BytesIO(base64.decodebytes(text.encode()))


def _open_picture(file: Any, limits: MediaLimits) -> Any:
    """A PIL image of which only the header was read."""
    size = os.path.getsize(file) if isinstance(file, str) else file.getbuffer().nbytes
    limits.check("max_file_bytes", size, "the file has more bytes")
    pictures = importlib.import_module("PIL.Image")
    pictures.init()
    picture = pictures.open(file, formats=[name for name in _FORMATS if name in pictures.OPEN])
    _check_size(picture, limits)
    return picture


def _check_size(picture: Any, limits: MediaLimits) -> None:
    what = f"the picture has {picture.width} x {picture.height} pixels"
    limits.check("max_image_pixels", picture.width * picture.height, what)
