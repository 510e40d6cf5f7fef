"""`serve`: run a model behind an OpenAI-compatible HTTP API."""

import copy
import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.import_utils import is_serve_available

from ..compression.compress_video import CompressionConfig
from ..compression.validation import check_choice, check_number, settings_of
from ..video.download import DownloadRules, host_name
from ..video.limits import MediaLimits
from ..video.reading import DEFAULT_NUM_FRAMES
from ..video.sources import hide_user
from .request_limits import DEFAULT_REQUEST_LIMITS, SERVER_LIMITS, RequestLimits

# Answers that are written at the same time. Eight cost little more time than one. On a GPU, the cache of eight prompts
# of 8,000 tokens takes 4 GB for a 7B model.
MAX_NUM_SEQS = 8
# More requests than an evaluation or a web page sends at once. They wait as text, or as files in base64.
MAX_QUEUE = 256
# Seconds. vLLM gives a step as long. A 7B model on a CPU may need longer for a long video.
STEP_TIMEOUT = 300.0
# Seconds. Most answers end in this time, and it is as long as Kubernetes waits before it kills.
SHUTDOWN_TIMEOUT = 30
# What strangers may let the server fetch: an hour of video at 4 Mbit/s, in the time that clients wait for an answer.
DOWNLOADS = DownloadRules(max_bytes=2 * 10**9, max_seconds=120.0, private_networks=False)
# Bytes. A video of 48 MB in base64, which is more than APIs on the web take. Larger ones go by their address.
MAX_BODY_BYTES = 64 * 2**20
# Seconds after which Python lets another thread run. The model's thread gives way at every operation of torch. With
# Python's own 5 ms it would wait so long each time while another thread parses or receives.
_SWITCH_SECONDS = 0.0002
# The environment variable with an API key. Command lines show up in lists of processes.
API_KEY_VARIABLE = "FLASHVID_API_KEY"


class _WithoutSecrets(logging.Filter):
    """Takes queries, and users of URLs, out of the lines about requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                hide_user(value.partition("?")[0]) if isinstance(value, str) else value for value in record.args
            )
        return True


def serve(
    model: str | Path,
    *,
    host: str = "localhost",
    port: int = 8000,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    num_frames: int = DEFAULT_NUM_FRAMES,
    retention_ratio: float | None = None,
    allowed_local_media_path: str | Path | None = None,
    request_limits: RequestLimits = DEFAULT_REQUEST_LIMITS,
    limits: MediaLimits = SERVER_LIMITS,
    max_num_seqs: int = MAX_NUM_SEQS,
    max_queue: int = MAX_QUEUE,
    api_key: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    allowed_media_domains: Sequence[str] = (),
    allow_private_networks: bool = False,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_download_bytes: int = DOWNLOADS.max_bytes,
    download_timeout: float = DOWNLOADS.max_seconds,
    step_timeout: float = STEP_TIMEOUT,
    shutdown_timeout: int = SHUTDOWN_TIMEOUT,
    log_level: str = "info",
) -> None:
    """Serve a model with compressed videos until interrupted.

    The server is built from the parts of `transformers serve`. It answers `POST /v1/chat/completions`,
    `POST /v1/responses`, `GET /v1/models`, `GET /health` and `GET /metrics` (Prometheus). Requests have the form of
    OpenAI's API, streamed or not. A video is a part of a message:

    ```python
    client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="unused")
    video = {"type": "video_url", "video_url": {"url": "https://example.org/clip.mp4"}}
    client.chat.completions.create(
        model="path/or/id",
        messages=[{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}],
        extra_body={"chat_template_kwargs": {"num_frames": 16}, "retention_ratio": 0.2},  # of this request only
    )
    ```

    The URL may be `http(s)://`, `data:video/mp4;base64,...` and, with `allowed_local_media_path`, `file://` or a path.
    An image is a part of type `image_url`. The parts of transformers, `{"type": "video", "video": url}` and
    `{"type": "image", "image": url}`, are taken too. The settings of `video_settings.py` may stand inside `video_url`
    or beside it, and replace those of the request; `url` may be a list of pictures, the frames. `chat_template_kwargs`
    takes `num_frames` or `fps` (see `read_video`) and variables of the chat template. A request that cannot be
    answered, or has a field that the server does not honour (`fields.py`), gets a status of 400 or above, the reason
    and the name of the field.
    `usage.prompt_tokens` counts the video tokens before their compression. The server logs for every video how many
    tokens entered the language model, and how many remained in its upper layers.

    Requests at the same time share the model: each prompt is read alone, then every step writes one token of up to
    `max_num_seqs` answers. A client that goes away ends its answer. If the server is full, the client with the most
    requests gets the status 429 for its newest one. While a step is stuck, `/health` and all requests get 503.

    A body must come within two minutes (status 408). The server keeps at most 4096 connections, or half of the files
    that the process may open (`ulimit -n`) if those are fewer. It closes a connection that brings no request for a
    minute, and one whose client takes nothing of its answer.

    Without `api_key`, everyone who reaches the server may ask. It encrypts nothing: put a gateway with TLS in front of
    a server that others can reach.

    Args:
        model: a FlashVID folder or Hub id, an upstream checkpoint of a family that `find_family` knows, or an original
            LLaVA checkpoint. Its code is not run. Requests name the model by this string.
        host, port: where to listen; port 0 takes a free one.
        device: "auto" (all accelerators, or the CPU if there is none) or a device such as "cpu", "cuda:1" or "1".
        dtype: "auto" (that of the checkpoint) or the name of a torch dtype such as "bfloat16".
        attn_implementation: as in `from_pretrained`, such as "sdpa" or "flash_attention_2".
        revision: branch, tag or commit of a model on the Hub.
        num_frames: number of frames of a video, if the request does not set it; a shorter clip gives all its frames.
        retention_ratio: share of the video tokens that a layer sees on average, above 0, at most 1 (off). Default:
            the checkpoint's; 0.25 for a checkpoint without FlashVID's settings.
        allowed_local_media_path: a folder. Requests may name its files and those of the folders inside it, after links
            and `..` were resolved. Default: no file of this machine, because anyone who reaches the server could let
            the model describe it.
        request_limits: how much a request may ask for, see `RequestLimits`. Larger ones get the status 400.
        limits: what a video or an image must not exceed, see `MediaLimits`. Larger ones get the status 400.
        max_num_seqs: how many answers are written at the same time.
        max_queue: how many requests may be in the server besides those.
        api_key: keys, one of which a request must send as `Authorization: Bearer KEY`; `/health` needs none. Default:
            that of the environment variable `FLASHVID_API_KEY`; without it, everyone may ask.
        allowed_hosts: further names that `Host` may have if `host` is a loopback address. Other addresses take all.
        allowed_media_domains: the only hosts that media are fetched from, also after redirects. Default: all.
        allow_private_networks: whether media may be fetched from addresses that are not public, such as 127.0.0.1,
            10.0.0.0/8 and 169.254.169.254.
        max_body_bytes: bytes of a request; more get the status 413.
        max_download_bytes: bytes of a file that is fetched.
        download_timeout: seconds that fetching a file may take.
        step_timeout: seconds after which a step of the model (reading a prompt, or writing a token) counts as stuck.
        shutdown_timeout: seconds that the server waits at its end for answers that are not whole.
        log_level: log level of the server and of this package: "critical", "error", "warning", "info" or "debug".

    Raises:
        ImportError: the packages that only a server needs are not installed.
        ValueError: an argument is out of range, or no family reads the model.
        OSError: the model is not found.
    """
    check_number("port", port, least=0, most=65535, integer=True)
    check_number("num_frames", num_frames, least=1, integer=True)
    check_number("max_num_seqs", max_num_seqs, least=1, integer=True)
    check_number("max_queue", max_queue, least=0, integer=True)
    check_number("step_timeout", step_timeout, above=0)
    check_number("max_body_bytes", max_body_bytes, least=1, integer=True)
    check_number("max_download_bytes", max_download_bytes, least=1, integer=True)
    check_number("download_timeout", download_timeout, above=0)
    keys = _find_keys(api_key)
    request_limits.check("max_frames", num_frames, "num_frames", "frames", "Choose fewer.")
    local_media_path = None if allowed_local_media_path is None else Path(allowed_local_media_path).resolve()
    if local_media_path is not None and not local_media_path.is_dir():
        raise ValueError(
            f"`allowed_local_media_path` is {str(allowed_local_media_path)!r}: it must be a folder that exists. Name "
            "the folder whose files requests may name."
        )
    check_number("shutdown_timeout", shutdown_timeout, least=0, integer=True)
    if retention_ratio is not None:
        settings_of(CompressionConfig)["retention_ratio"].check("retention_ratio", retention_ratio)
    check_choice("log_level", log_level, ("critical", "error", "warning", "info", "debug"))
    if not is_serve_available():
        raise ImportError('A server needs more packages than a model: `pip install "flashvid-hf[serve]"`.')

    import uvicorn

    from .app import ServedModel, build_app  # its base classes exist only if those packages are installed
    from .connections import BoundedConnection
    from .gate import LOOPBACK_NAMES, GateRules

    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    package = {"handlers": ["default"], "level": log_level.upper(), "propagate": False}
    log_config["filters"] = {"no secrets": {"()": _WithoutSecrets}}
    log_config["handlers"]["access"]["filters"] = ["no secrets"]
    log_config["loggers"][__name__.partition(".")[0]] = package
    served = ServedModel.load(
        str(model),
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        retention_ratio=retention_ratio,
    )
    app = build_app(
        served,
        num_frames=num_frames,
        local_media_path=local_media_path,
        request_limits=request_limits,
        limits=limits,
        max_num_seqs=max_num_seqs,
        max_queue=max_queue,
        step_timeout=step_timeout,
        gate=GateRules(
            api_keys=keys,
            hosts=(*LOOPBACK_NAMES, host, *allowed_hosts) if is_loopback(host) else None,
            max_body_bytes=max_body_bytes,
        ),
        downloads=DownloadRules(
            max_bytes=max_download_bytes,
            max_seconds=download_timeout,
            private_networks=allow_private_networks,
            domains=frozenset(host_name(name) for name in allowed_media_domains) or None,
        ),
    )
    sys.setswitchinterval(_SWITCH_SECONDS)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level=log_level,
        log_config=log_config,
        http=BoundedConnection,
        timeout_graceful_shutdown=shutdown_timeout,
    )


def _find_keys(given: Sequence[str]) -> tuple[str, ...]:
    keys = (given,) if isinstance(given, str) else tuple(given)
    if not keys and API_KEY_VARIABLE in os.environ:
        keys = (os.environ[API_KEY_VARIABLE],)
    if not all(key.strip() for key in keys):  # an empty one would let in everyone who sends none
        raise ValueError(f"`api_key` is empty: give a key, or leave out `--api-key` and `{API_KEY_VARIABLE}`.")
    return tuple(key.strip() for key in keys)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: only "localhost" is sure to stay on the machine
        return host == "localhost"
