"""Where a video or a picture comes from: paths, URLs, lists of pictures, and rows of a data set."""

import base64
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import unquote

from transformers.image_utils import load_image

FILE_TYPES = (str, bytes, os.PathLike)
# Functions that provide the content of a URL as a local file, by its scheme, or by "bytes" for the bytes of a file.
# Their arguments are the source, its name in errors, and what it is ("video" or "image"). The package adds
# `fetch_file`. The code of a model's folder has no such functions: it reads videos from local files only.
FETCHERS: dict[str, Callable[..., AbstractContextManager[str]]] = {}
# Characters. A shorter text is the path of a picture, not the picture itself in base64.
_LEAST_BASE64 = 80


def hide_user(text: str) -> str:
    """A text in which URLs have `...` for the user and the password that may stand before their host."""
    return re.sub(r"//[^/?#\s]*@", "//...@", text) if "@" in text else text


def label_of(source: str) -> str:
    """A path or a URL as errors show it: quoted, not too long, and without a user."""
    text = hide_user(source[:2000])
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
    """The file in a row of a data set (`{"path": ..., "bytes": ...}`, an undecoded video); all else as it is."""
    if isinstance(source, Mapping) and source and source.keys() <= {"path", "bytes"}:
        return source.get("bytes") or source.get("path")
    return source


def is_list_of_files(video: Any) -> bool:
    """Whether this is a list of files or URLs; as one video these are pictures, its frames."""
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(isinstance(file, FILE_TYPES) for file in video)


def load_picture(source: Any) -> Any:
    """A PIL image, RGB and upright.

    Args:
        source: a path, an `http(s)://`, `file://` or `data:image/...;base64,` URL, the bytes of a file, base64, or a
            PIL image.

    Raises:
        ValueError: it cannot be read.
    """
    given = source = unpack_source(source)
    if isinstance(source, str) and (scheme := scheme_of(source)) in FETCHERS and scheme in ("http", "https"):
        with FETCHERS[scheme](source, label_of(source), "image") as path:
            return _open_picture(path, given)
    return _open_picture(source, given)


def _open_picture(source: Any, given: Any) -> Any:
    try:
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        if isinstance(source, bytes):
            source = base64.b64encode(source).decode()
        if isinstance(source, str) and ":" in source:
            scheme = scheme_of(source)
            if scheme == "file":
                source = file_of_url(source)
            elif scheme in ("http", "https", "data"):  # transformers knows them in lower case only
                source = scheme + source[len(scheme) :]
        if isinstance(source, str) and len(source) < _LEAST_BASE64 and not re.match("https?:|data:", source):
            if not os.path.isfile(source):
                raise ValueError("it is a directory" if os.path.isdir(source) else "it does not exist")
        return load_image(source)
    except Exception as error:  # from the HTTP client, PIL or the file system
        label = label_of(given) if isinstance(given, str) else f"{given!r:.60}"
        raise ValueError(f"the image {label} cannot be read: {hide_user(str(error)[:200])}") from error
