"""Reading the videos and images of a request: they replace their URLs."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from ..video.limits import DEFAULT_LIMITS, MediaLimits
from ..video.message_parts import IMAGE_SOURCES, LABELS, VIDEO_SOURCES, read_image_part, read_video_part
from ..video.sources import file_of_url, scheme_of
from ..video.video_settings import IMAGE_SETTINGS, VIDEO_SETTINGS
from .kinds import OBJECT, TEXT, FieldError, Items, Record, integer, is_integer, number, show, show_name, wrong
from .message_fields import MEDIA_TYPES, check_messages, media_parts
from .request_limits import DEFAULT_REQUEST_LIMITS, RequestLimits
from .templates import find_variables

# For each type of OpenAI's media parts the field with the URL. transformers' parts have the type "video" or "image".
_URL_FIELDS = {"video_url": "video_url", "image_url": "image_url", "input_image": "image_url"}
_REMOTE = ("http", "https", "data")  # schemes of URLs
# OpenAI's levels of detail of an image that ask for what the server does: all pixels that the model's processor takes.
_DETAILS = ("auto", "high")
# Arguments of `apply_chat_template` itself, which requests must not set.
TEMPLATE_ARGUMENTS = frozenset(inspect.signature(ProcessorMixin.apply_chat_template).parameters)
_SAMPLING = {"num_frames": integer(1), "fps": number("a number > 0 (frames a second)", lambda value: value > 0)}
# What may describe frames that come as a list of pictures.
_METADATA = Record(
    "an object",
    {
        "fps": number("a number > 0", lambda value: value > 0),
        "total_num_frames": integer(1, 2**31),
        "frames_indices": Items("a list of integers >= 0", integer(0, 2**31)),
        "duration": number("a number >= 0", lambda value: value >= 0),
        "width": integer(1),
        "height": integer(1),
        "video_backend": TEXT,
    },
)


@dataclass(frozen=True)
class RequestReader:
    """Checks requests and reads their videos and images.

    Args:
        model_name: the only model that requests may name.
        num_frames: number of frames of a video, if the request does not set it.
        local_media_path: the folder whose files requests may name; `None` for no files of this machine.
        processor: the model's processor, which settings of the size of videos and images need.
        request_limits: how much a request may ask for.
        limits: what a video or an image must not exceed.
    """

    model_name: str
    num_frames: int
    local_media_path: Path | None
    processor: Any
    request_limits: RequestLimits = DEFAULT_REQUEST_LIMITS
    limits: MediaLimits = DEFAULT_LIMITS

    def check(self, body: dict[str, Any], messages_field: str) -> None:
        """Check all of a request that can be checked before a video or an image is read.

        Args:
            body: a request in OpenAI's form, whose other fields were checked.
            messages_field: "messages" of chat completions or "input" of responses, which may be a string.

        Raises:
            FieldError: the request names another model, or is malformed.
        """
        if body.get("model") not in (None, self.model_name):
            raise FieldError(
                "model", f"`model` is {show(body['model'])}: this server has {self.model_name!r}. Ask for that."
            )
        self._split(body.get("chat_template_kwargs") or {})
        check_messages(body, messages_field, self.request_limits)

    def read(self, body: dict[str, Any], messages_field: str) -> dict[str, Any]:
        """The request with a `VideoClip` for the URL of every video, and a `Picture` for the URL of every image.

        Args:
            body: a request that `check` accepted.
            messages_field: as of `check`.

        Returns:
            A new request. Its `chat_template_kwargs` have only variables of the template.

        Raises:
            FieldError: a media part is malformed, or its video or image cannot be read.
        """
        variables, sampling = self._split(body.get("chat_template_kwargs") or {})
        messages, reading = body.get(messages_field), _Reading(self, sampling)
        if isinstance(messages, list):
            messages = [reading.message(message, f"{messages_field}[{i}]") for i, message in enumerate(messages)]
        # By default transformers streams responses, and OpenAI's API does not.
        return {"stream": False, **body, "chat_template_kwargs": variables, messages_field: messages}

    def has_downloads(self, body: dict[str, Any], messages_field: str) -> bool:
        """Whether a media part of a request that `check` accepted names an `http(s)` address."""
        texts = (text for part in media_parts(body.get(messages_field)) for text in _texts(part))
        return any(scheme_of(text[:8]) in ("http", "https") for text in texts)

    def locate(self, address: str, path: str) -> str:
        """The address of a video or an image as it is read: a URL, or a file inside of the folder for local media.

        Raises:
            FieldError: it is a file elsewhere.
        """
        scheme = scheme_of(address[:8])
        if scheme in _REMOTE and address[len(scheme) :].startswith(":"):
            return address
        if self.local_media_path is None:
            raise FieldError(
                path,
                f"`{path}` is {show(address)}: this server reads no files of its own machine. Send an http(s) address, "
                "or the file itself as `data:video/mp4;base64,...` (`data:image/png;base64,...`).",
            )
        try:
            file = Path(file_of_url(address) if scheme == "file" else address).resolve()
        except (OSError, RuntimeError, ValueError):  # a circle of links, or a name that no file can have
            file = None
        if file is None or not file.is_relative_to(self.local_media_path.resolve()):
            raise FieldError(
                path,
                f"`{path}` is {show(address)}: of its own machine, this server reads only files inside of the folder "
                "of `--allowed-local-media-path`. Send an http(s) address, or the file itself as `data:...`.",
            )
        return str(file)

    @cached_property
    def _variables(self) -> frozenset[str]:
        return find_variables(self.processor) - TEMPLATE_ARGUMENTS

    def _split(self, template_kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split `chat_template_kwargs` into variables of the template and arguments that sample videos."""
        OBJECT.check("chat_template_kwargs", template_kwargs)
        for name in sorted(template_kwargs.keys() & TEMPLATE_ARGUMENTS):
            raise FieldError(
                f"chat_template_kwargs.{name}",
                f"`chat_template_kwargs` has {name!r}, which the server sets: it takes `num_frames`, `fps` and "
                "variables of the chat template. Leave it out.",
            )
        variables = {name: value for name, value in template_kwargs.items() if name not in _SAMPLING}
        for name in sorted(variables.keys() - self._variables):
            known = ", ".join(f"`{name}`" for name in (*_SAMPLING, *sorted(self._variables)))
            raise FieldError(
                f"chat_template_kwargs.{show_name(name)}",
                f"`chat_template_kwargs` has {show_name(name)!r}, which the model's chat template does not use: choose "
                f"from {known}, or leave it out.",
            )
        sampling = {name: template_kwargs[name] for name in _SAMPLING if template_kwargs.get(name) is not None}
        for name, value in sampling.items():
            _SAMPLING[name].check(f"chat_template_kwargs.{name}", value)
        return variables, sampling or {"num_frames": self.num_frames}


class _Reading:
    """Reads the media of one request, one after the other, and counts their frames and bytes.

    Args:
        reader: of the server.
        sampling: how many frames of a video are taken, if its part does not say so.
    """

    def __init__(self, reader: RequestReader, sampling: dict[str, Any]):
        self._reader, self._sampling = reader, sampling
        self._num_frames = self._num_bytes = 0

    def message(self, message: dict[str, Any], path: str) -> dict[str, Any]:
        """A message, or a part of the only message, with the media in the place of their URLs."""
        if "role" not in message:
            return self._part(message, path)
        # Clients send `tool_calls: null` back. Older versions of transformers fail on it, or drop the content.
        message = {name: value for name, value in message.items() if value or name == "content"}
        if not isinstance(message.get("content"), list):
            return message
        parts = [self._part(part, f"{path}.content[{place}]") for place, part in enumerate(message["content"])]
        return {**message, "content": parts}

    def _part(self, part: dict[str, Any], path: str) -> dict[str, Any]:
        kind = part.get("type")
        if kind not in MEDIA_TYPES:
            return part
        path = f"{path}.{_URL_FIELDS.get(kind, kind)}"
        plain = self._without_url(part, path) if kind in _URL_FIELDS else dict(part)
        processor, limits = self._reader.processor, self._reader.limits
        with _blame(path):
            if kind in ("video_url", "video"):
                plain = self._bound_frames(self._locate(plain, VIDEO_SOURCES, path), path)
                clip = read_video_part(plain, self._sampling, processor, limits)
                self._count_frames(len(clip.frames), path)
                self._num_frames += len(clip.frames)
                self._count_bytes(clip.frames.nbytes)
                return {"type": "video_url", "video_url": {"url": clip}}
            picture = read_image_part(self._locate(plain, IMAGE_SOURCES, path), processor, limits)
            self._count_bytes(3 * picture.image.width * picture.image.height)
            return {"type": "image_url", "image_url": {"url": picture}}

    def _without_url(self, part: dict[str, Any], path: str) -> dict[str, Any]:
        """A part in OpenAI's form in that of transformers: the source, and the settings beside it."""
        kind, field = part["type"], _URL_FIELDS[part["type"]]
        inside = part.get(field)
        inside = dict(inside) if isinstance(inside, dict) else {"url": inside}
        source = inside.pop("url", None)
        if not source:
            raise wrong(path, part.get(field), "an object with a `url`")
        outside = {name: value for name, value in part.items() if name not in ("type", field)}
        for name in sorted(inside.keys() & outside.keys()):
            raise FieldError(
                f"{path}.{show_name(name)}", f"`{show_name(name)}` stands inside `{field}` and beside it: give it once."
            )
        medium = "video" if kind == "video_url" else "image"
        settings = {**inside, **outside}
        if settings.get(medium) is not None:
            raise FieldError(
                f"{path}.{medium}", f"`{medium}` stands beside the source in `{field}`: give one of the two."
            )
        return {**settings, medium: source}

    def _locate(self, part: dict[str, Any], sources: tuple[str, ...], path: str) -> dict[str, Any]:
        """A part whose sources may be read. Anything but an address would be something that the server opens itself."""
        part = {name: value for name, value in part.items() if name != "type" and value is not None}
        for name in part.keys() & set(sources):
            source = part[name]
            addresses = source if isinstance(source, list) and sources is VIDEO_SOURCES else [source]
            if not addresses or not all(isinstance(address, str) and address for address in addresses):
                raise wrong(path, source, "an object with a `url`, or an address")
            if name == "base64":
                part[name] = source if source[:5].lower() == "data:" else f"data:image/png;base64,{source}"
                continue
            located = [self._reader.locate(address, path) for address in addresses]
            part[name] = located if isinstance(source, list) else located[0]
        if part.get("detail") in _DETAILS:
            del part["detail"]
        self._check_settings({name: value for name, value in part.items() if name not in sources}, sources[0], path)
        return part

    def _check_settings(self, given: dict[str, Any], medium: str, path: str) -> None:
        """Check names and types of the settings beside a video or an image; `read_video_part` checks the rest."""
        names = VIDEO_SETTINGS if medium == "video" else IMAGE_SETTINGS
        for name, value in given.items():
            place = f"{path}.{show_name(name)}"
            if name in names:
                number("a number").check(place, value)
            elif name == "video_metadata" and medium == "video":
                _METADATA.check(place, value)
            elif name not in LABELS:
                article = "a" if medium == "video" else "an"
                step = " `max_pixels` makes an image smaller." if name == "detail" else ""
                raise FieldError(
                    place,
                    f"`{show_name(name)}` beside {article} {medium} is {show(value)}: no such setting is known.{step} "
                    f"Choose from {', '.join(names)}, or leave it out.",
                )

    def _bound_frames(self, part: dict[str, Any], path: str) -> dict[str, Any]:
        """A part that asks for few enough frames; for at most one too many if only its duration says how many."""
        given = [part[name] for name in ("num_frames", "nframes") if name in part]
        if not given and "fps" not in part and "num_frames" in self._sampling:
            given = [self._sampling["num_frames"]]
        for count in [*given, part.get("min_frames")]:
            if is_integer(count):
                self._count_frames(count, path)
        if given:
            return part
        room = self._reader.request_limits.max_frames - self._num_frames + 1
        most = part.get("max_frames", room)
        return {**part, "max_frames": min(most, room) if is_integer(most) else most}

    def _count_frames(self, number: int, path: str) -> None:
        limits, total = self._reader.request_limits, self._num_frames + number
        limits.check(
            "max_frames", total, path, "frames of all videos so far", "Ask for fewer by `num_frames` or `fps`."
        )

    def _count_bytes(self, number: int) -> None:
        self._num_bytes += number
        self._reader.limits.check(
            "max_decoded_bytes", self._num_bytes, "all media of the request so far have more bytes"
        )


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value of JSON, without the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


@contextmanager
def _blame(path: str) -> Iterator[None]:
    """Let an error name the part of the request."""
    try:
        yield
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(path, str(error)) from error
