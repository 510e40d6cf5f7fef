"""Reading the videos and images of a request: they replace their URLs."""

import inspect
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from ..video.download import DOWNLOAD_TIMEOUT
from ..video.limits import DEFAULT_LIMITS, MediaLimits
from ..video.message_parts import read_image_part, read_video_part
from ..video.sources import scheme_of

# Types of the parts of a message in OpenAI's chat completions and responses; for media also the field with the URL.
_TEXT_TYPES = ("text", "input_text", "output_text")
_MEDIA_FIELDS = {"video_url": "video_url", "image_url": "image_url", "input_image": "image_url"}
_KNOWN_TYPES = (*_TEXT_TYPES, *_MEDIA_FIELDS)
_REMOTE = ("http", "https", "data")  # schemes of URLs
# OpenAI's level of detail of an image. The only one that leaves the choice to the server.
_DETAIL = "auto"
# Arguments of `apply_chat_template` itself. A request may set all other names, which are variables of the template.
TEMPLATE_ARGUMENTS = frozenset(inspect.signature(ProcessorMixin.apply_chat_template).parameters)


@dataclass(frozen=True)
class RequestReader:
    """Checks requests and reads their videos and images.

    Args:
        model_name: the only model that requests may name.
        num_frames: number of frames of a video, if the request does not set it.
        allow_local_files: whether requests may name files of this machine.
        processor: the model's processor, which says how large videos and images have to be.
        limits: what a video or an image must not exceed.
    """

    model_name: str
    num_frames: int
    allow_local_files: bool
    processor: Any
    limits: MediaLimits = DEFAULT_LIMITS

    def read(self, body: dict[str, Any], messages_field: str) -> dict[str, Any]:
        """The request with a `VideoClip` for the URL of every video, and a `Picture` for the URL of every image.

        Args:
            body: a request in OpenAI's form.
            messages_field: "messages" of chat completions or "input" of responses, which may be a string.

        Returns:
            A new request. Its `chat_template_kwargs` have only variables of the template.

        Raises:
            ValueError: the request names another model, is malformed, or has a video or image that cannot be read.
        """
        if body.get("model") not in (None, self.model_name):
            raise ValueError(f"`model` is {body['model']!r:.200}: this server has {self.model_name!r}. Ask for that.")
        variables, sampling = self._split(body.get("chat_template_kwargs") or {})
        messages = body.get(messages_field)
        is_text = isinstance(messages, str) and messages_field == "input"
        if not messages or not (is_text or isinstance(messages, list)):
            raise ValueError(f"`{messages_field}` is {messages!r:.100}: it must be a list of at least one message.")
        if not is_text:
            messages = [self._read_message(message, messages_field, sampling) for message in messages]
        # By default transformers streams responses, and OpenAI's API does not.
        return {"stream": False, **body, "chat_template_kwargs": variables, messages_field: messages}

    def _split(self, template_kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split `chat_template_kwargs` into variables of the template and arguments that sample videos."""
        if not isinstance(template_kwargs, dict):
            raise ValueError(f"`chat_template_kwargs` is {template_kwargs!r:.100}: it must be an object.")
        for name in sorted(template_kwargs.keys() & TEMPLATE_ARGUMENTS):
            raise ValueError(
                f"`chat_template_kwargs` has {name!r}, which the server sets: it takes `num_frames`, `fps` and "
                "variables of the chat template. Leave it out."
            )
        variables = dict(template_kwargs)
        asked = {name: variables.pop(name, None) for name in ("num_frames", "fps")}
        sampling = {name: value for name, value in asked.items() if value is not None}
        return variables, sampling or {"num_frames": self.num_frames}

    def _read_message(self, message: Any, messages_field: str, sampling: dict[str, Any]) -> dict[str, Any]:
        if isinstance(message, dict) and isinstance(message.get("role"), str):
            if not isinstance(message.get("content"), list):
                return message
            return {**message, "content": [self._read_part(part, sampling) for part in message["content"]]}
        if messages_field == "messages" or not isinstance(message, dict) or "type" not in message:
            raise ValueError(f"A message is {message!r:.100}: it must be an object with `role` and `content`.")
        # The input of responses may also be the parts of one message, and may have tool calls and their results.
        return self._read_part(message, sampling) if message["type"] in _KNOWN_TYPES else message

    def _read_part(self, part: Any, sampling: dict[str, Any]) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _KNOWN_TYPES:  # transformers would drop the part and answer without it
            raise ValueError(
                f"A part of a message has the type {kind!r:.100}: it must be one of {', '.join(_KNOWN_TYPES)}."
            )
        if kind in _TEXT_TYPES:
            if not isinstance(part.get("text"), str):
                raise ValueError(f"A part of a message has the `text` {part.get('text')!r:.100}: it must be a string.")
            return part
        field = _MEDIA_FIELDS[kind]
        source, settings = self._split_part(part, field)
        for address in source if isinstance(source, list) else [source]:
            if not isinstance(address, str) or not address:
                raise ValueError(f"`{field}` is {part.get(field)!r:.100}: it must be an object with a `url`.")
            if scheme_of(address) not in _REMOTE and not self.allow_local_files:
                raise ValueError(
                    f"`{field}` is {address!r:.100}: this server reads no files of its own machine. Send an http(s) "
                    "address, or the file itself as `data:video/mp4;base64,...` (`data:image/png;base64,...`)."
                )
        if kind == "video_url":
            clip = read_video_part({**settings, "video": source}, sampling, self.processor, self.limits)
            return {"type": kind, field: {"url": clip}}
        picture = read_image_part({**settings, "image": source}, self.processor, DOWNLOAD_TIMEOUT, self.limits)
        return {"type": kind, field: {"url": picture}}

    def _split_part(self, part: dict[str, Any], field: str) -> tuple[Any, dict[str, Any]]:
        """The URL of a part, or a list of URLs of frames, and the settings beside it and beside the part's type."""
        inside = part.get(field)
        inside = dict(inside) if isinstance(inside, dict) else {"url": inside}
        source = inside.pop("url", None)
        if not source or (isinstance(source, list) and field != "video_url"):
            raise ValueError(f"`{field}` is {part.get(field)!r:.100}: it must be an object with a `url`.")
        outside = {name: value for name, value in part.items() if name not in ("type", field)}
        for name in sorted(inside.keys() & outside.keys()):
            raise ValueError(f"`{name}` stands inside `{field}` and beside it: give it once.")
        settings = {**inside, **outside}
        if settings.get("detail") == _DETAIL:
            del settings["detail"]
        return source, settings
