"""Videos from URLs and from bytes in memory. Only the package has this module, published folders do not."""

import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

DOWNLOAD_TIMEOUT = 30.0  # seconds that the server may stay silent
# What `read_video` leaves to `fetch_video`: schemes of URLs, and "bytes" for the bytes of a file.
SCHEMES = ("bytes", "data", "http", "https")


@contextmanager
def fetch_video(video: str | bytes, label: str) -> Iterator[str]:
    """The path of a temporary file with the content of a URL (`http`, `https`, `data`) or with these bytes.

    Args:
        label: the name of the video in error messages.

    Raises:
        ValueError: it cannot be downloaded.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "video")
        with open(path, "wb") as file:
            if isinstance(video, (str, os.PathLike)):
                _download(os.fspath(video), label, file)
            else:
                file.write(video)
        yield path


def _download(url: str, label: str, file: BinaryIO) -> None:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "flashvid-hf"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            shutil.copyfileobj(response, file)
            announced = int(response.headers.get("Content-Length") or 0)
        if file.tell() < announced:  # urllib does not tell a lost connection from the end of the file
            raise OSError(f"the connection ended after {file.tell()} of {announced} bytes")
    except Exception as error:
        raise ValueError(f"the video {label} cannot be downloaded: {error or type(error).__name__}") from error
