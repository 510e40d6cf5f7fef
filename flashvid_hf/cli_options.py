"""What the commands of `flashvid-hf` share: options, lists in options, settings, limits, and lines of output."""

import inspect
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from .compression.validation import settings_of
from .families import FAMILIES
from .serving.request_limits import SERVER_LIMITS, RequestLimits
from .video.limits import MediaLimits

console = Console()

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Folder or Hub id: a FlashVID repository, a published Qwen2-VL, Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision "
        "checkpoint, or an original LLaVA checkpoint. Published checkpoints are compressed too.",
    ),
]
Device = Annotated[str, typer.Option(help="`auto` takes all GPUs, or the CPU where there is none; or e.g. `cuda:1`.")]
Dtype = Annotated[str, typer.Option(help="`auto`, `bfloat16`, `float16` or `float32`; `auto` is the checkpoint's.")]
NumFrames = Annotated[int, typer.Option(min=1, help="Frames taken from the video, spread evenly.")]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--retention-ratio",
        "-r",
        help="Share of the video tokens that a layer sees on average, above 0, at most 1; 1.0 compresses nothing. "
        "Default: what the model's configuration says.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other FlashVID field, e.g. `--set alpha=0.6`. Repeatable."),
]
Repository = Annotated[
    str | None,
    typer.Option(help="Hub id that the card gives to the folder. Default: the folder's name."),
]


def listed(names: Any) -> str:
    """Names in the form of the help."""
    return ", ".join(f"`{name}`" for name in names)


class ListOptions(TyperCommand):
    """A command whose repeatable options also take several values in a row: `--ratios 0.1 0.25`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        spread: list[str] = []
        option, has_value = "", False  # the list that the next word may belong to, and whether it has a value
        for word in args:
            if word.startswith("-"):
                option, has_value = word if word in lists else "", False
            elif option and has_value:
                spread.append(option)
            else:
                has_value = True
            spread.append(word)
        return super().parse_args(ctx, spread)


def say(text: str) -> None:
    """Print a line without wrapping or colours, so that programs can read it too."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def say_aside(text: str) -> None:
    """Print a line that is not a result, on stderr."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def read_settings(retention_ratio: float | None, fields: list[str] | None) -> dict[str, Any]:
    """FlashVID's fields from the options `--retention-ratio` and `--set`.

    Raises:
        ValueError: an option is not FIELD=VALUE, names a field that no family has, or gives a field twice.
    """
    known = frozenset().union(*(family.config.method_fields for family in FAMILIES))
    settings: dict[str, Any] = {} if retention_ratio is None else {"retention_ratio": retention_ratio}
    for field in fields or ():
        name, is_pair, text = field.partition("=")
        if not is_pair:
            raise ValueError(f"`--set` is {field!r}: it must be FIELD=VALUE, as in `--set alpha=0.6`.")
        if name not in known:
            choice = ", ".join(sorted(known))
            raise ValueError(f"`--set` is {field!r}: there is no field {name!r}, choose from {choice}.")
        if name in settings:
            raise ValueError(f"`--set` is {field!r}: `{name}` is given twice, pass it once.")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


# The options of `serve` for limits on media. Those on requests have their meanings in `RequestLimits`.
_MEDIA_LIMITS = {
    "max_frame_pixels": "Pixels of a video's frame.",
    "max_image_pixels": "Pixels of an image.",
    "max_file_frames": "Frames of a video file.",
    "max_seconds": "Seconds of a video.",
    "max_file_bytes": "Bytes of a file.",
    "max_decoded_bytes": "Bytes of the resized frames and the images of a request.",
}


def takes_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each limit, such as `--max-frames`. It gets them as its keyword arguments."""
    request = {name: (int, found.meaning) for name, found in settings_of(RequestLimits).items()}
    media = {name: (float, meaning) for name, meaning in _MEDIA_LIMITS.items()}
    defaults = {**vars(SERVER_LIMITS), **{field.name: field.default for field in fields(RequestLimits)}}
    options = {
        name: Annotated[kind | None, typer.Option(help=f"{meaning} Default: {defaults[name]:,}.")]
        for name, (kind, meaning) in {**request, **media}.items()
    }
    own = inspect.signature(command)
    kept = [parameter for parameter in own.parameters.values() if parameter.kind != inspect.Parameter.VAR_KEYWORD]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]
    command.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept} | options
    return command


def make_limits(given: dict[str, Any]) -> tuple[RequestLimits, MediaLimits]:
    """The limits of `serve` from its options; `None` stands for the default.

    Raises:
        ValueError: a limit is out of range.
    """
    values = {name: value for name, value in given.items() if value is not None}
    media = {name: value for name, value in values.items() if name in _MEDIA_LIMITS}
    request = {name: value for name, value in values.items() if name not in media}
    return RequestLimits(**request), replace(SERVER_LIMITS, **media)
