"""`serve`: run a model behind an OpenAI-compatible HTTP API."""

import copy
import ipaddress
from pathlib import Path

from transformers.utils.import_utils import is_serve_available

from ..compression.compress_video import CompressionConfig
from ..compression.validation import check_choice, check_number, settings_of
from ..video.limits import MediaLimits
from ..video.reading import DEFAULT_NUM_FRAMES

# What a video or an image in a request must not exceed. The frames of a video may take 2 GiB: more than the longest
# video of Qwen2.5-VL (768 frames of 602,112 pixels, 1.3 GiB).
SERVER_LIMITS = MediaLimits(max_decoded_bytes=2**31)


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
    allow_local_files: bool | None = None,
    limits: MediaLimits = SERVER_LIMITS,
    log_level: str = "info",
) -> None:
    """Serve a model with compressed videos until interrupted.

    The server is built from the parts of `transformers serve`. It answers `POST /v1/chat/completions`,
    `POST /v1/responses`, `GET /v1/models` and `GET /health`. Requests have the form of OpenAI's API, streamed or not. A
    video is a part of a message:

    ```python
    client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="unused")
    video = {"type": "video_url", "video_url": {"url": "https://example.org/clip.mp4"}}
    client.chat.completions.create(
        model="path/or/id",
        messages=[{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}],
        extra_body={"chat_template_kwargs": {"num_frames": 16}, "retention_ratio": 0.2},  # of this request only
    )
    ```

    The URL may be `http(s)://`, `data:video/mp4;base64,...` and, if local files are allowed, `file://` or a path. An
    image is a part of type `image_url`. The settings of `video_settings.py` may stand inside `video_url` or beside it,
    and replace those of the request; `url` may be a list of pictures, the frames. `chat_template_kwargs` takes
    `num_frames` or `fps` (see `read_video`) and variables of the chat template. A request that cannot be answered, or
    has a field that the server does not honour (`fields.py`), gets a status of 400 or above and the reason.
    `usage.prompt_tokens` counts the video tokens before their compression. The server logs for every video how many
    tokens entered the language model, and how many remained in its upper layers.

    The server has no authentication. It fetches the `http(s)://` addresses in requests, in any network and without a
    limit on their size. Put a gateway in front of a server that others can reach.

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
        allow_local_files: whether requests may name files of this machine. Default: only if `host` is a loopback
            address, because anyone who reaches the server could let the model describe any of these files.
        limits: what a video or an image must not exceed, see `MediaLimits`. Larger ones get status 400.
        log_level: log level of the server and of this package: "critical", "error", "warning", "info" or "debug".

    Raises:
        ImportError: the packages that only a server needs are not installed.
        ValueError: an argument is out of range, or no family reads the model.
        OSError: the model is not found.
    """
    check_number("port", port, least=0, most=65535, integer=True)
    check_number("num_frames", num_frames, least=1, integer=True)
    if retention_ratio is not None:
        settings_of(CompressionConfig)["retention_ratio"].check("retention_ratio", retention_ratio)
    check_choice("log_level", log_level, ("critical", "error", "warning", "info", "debug"))
    if not is_serve_available():
        raise ImportError('A server needs more packages than a model: `pip install "flashvid-hf[serve]"`.')

    import uvicorn

    from .app import ServedModel, build_app  # its base classes exist only if those packages are installed

    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    package = {"handlers": ["default"], "level": log_level.upper(), "propagate": False}
    log_config["loggers"][__name__.partition(".")[0]] = package
    served = ServedModel.load(
        str(model),
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        retention_ratio=retention_ratio,
    )
    if allow_local_files is None:
        allow_local_files = is_loopback(host)
    app = build_app(served, num_frames=num_frames, allow_local_files=allow_local_files, limits=limits)
    uvicorn.run(app, host=host, port=port, log_level=log_level, log_config=log_config)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: only "localhost" is sure to stay on the machine
        return host == "localhost"
