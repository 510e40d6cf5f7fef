"""The model's inputs of a request, made from its messages and its media."""

from typing import Any

import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from ..video.batching import convert_to_tensors
from ..video.message_parts import check_sizes
from ..video.pipeline_flashvid import media_arguments
from .kinds import FieldError
from .requests import TEMPLATE_ARGUMENTS


class RequestProcessor:
    """The processor of one request. transformers' handlers use it as a tokenizer and for its chat template.

    Args:
        processor: of the model.
        model: the model.
        messages_field: "messages" or "input", which errors name.
        settings: arguments of `generate` that are added to the inputs.

    Attributes:
        answer_text: the answer up to its stop text, with special tokens if the model's answers are parsed.
        prompt_tokens: of the prompt, once it is there.
        room: tokens that the model's context has for the answer; `None` if the context is not known.
    """

    def __init__(
        self, processor: ProcessorMixin, model: PreTrainedModel, messages_field: str, settings: dict[str, Any]
    ):
        self._processor, self._model = processor, model
        self._field, self._settings = messages_field, settings
        self.answer_text, self.prompt_tokens = "", 0
        self.room: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor.tokenizer, name)

    def parse_response(self, tokens: list[int], *args: Any, **kwargs: Any) -> Any:
        """The parts of the answer. transformers gives its tokens, which go on behind the stop text."""
        return self._processor.tokenizer.parse_response(self.answer_text, *args, **kwargs)

    def apply_chat_template(self, conversation: list[dict], tools: list | None = None, **kwargs: Any) -> BatchFeature:
        """The model's inputs for a conversation whose videos are `VideoClip`s and whose images are `Picture`s.

        Raises:
            FieldError: the template fails on these messages, the prompt has another number of placeholders than of
                videos or images, or it leaves no room for an answer in the model's context.
        """
        variables = {name: v for name, v in kwargs.items() if name not in TEMPLATE_ARGUMENTS | {"num_frames"}}
        parts = [part for message in conversation for part in message["content"]]
        clips = [part["url"] for part in parts if part["type"] == "video"]
        pictures = [part["url"] for part in parts if part["type"] == "image"]
        messages = [
            {**message, "content": [{k: v for k, v in part.items() if k != "url"} for part in message["content"]]}
            for message in conversation
        ]
        try:
            prompt = self._processor.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False, **variables
            )
        except Exception as error:  # of any type: the template is a program, and the messages are all that it gets
            text = f"The model's chat template cannot write the messages: {str(error)[:200]}. Change the messages."
            raise FieldError(self._field, text) from error
        self._check_placeholders(prompt, self._processor.video_token, len(clips), "videos")
        self._check_placeholders(prompt, self._processor.image_token, len(pictures), "images")
        device = self._model.device
        media = media_arguments(clips, [picture.image for picture in pictures], device, self._processor)
        inputs = convert_to_tensors(self._processor(text=[prompt], **media), "pt")
        self._check_length(inputs["input_ids"])
        check_sizes(inputs, clips, pictures, self._processor)
        inputs.update(self._settings)
        return inputs

    def _check_placeholders(self, prompt: str, token: str, number: int, kind: str) -> None:
        # Some templates drop the media of some roles. The model would then answer without them.
        if prompt.count(token) != number:
            raise FieldError(
                self._field,
                f"The prompt has {prompt.count(token)} placeholders {token!r} for {number} {kind}: put {kind} into "
                "user messages, and no placeholder into texts.",
            )

    def _check_length(self, ids: torch.Tensor) -> None:
        # Videos do not count: they are compressed, and the limit of frames bounds them.
        length = int((ids != self._processor.tokenizer.convert_tokens_to_ids(self._processor.video_token)).sum())
        most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and length >= most:
            raise FieldError(
                self._field,
                f"`{self._field}`: {length:,} tokens besides those of videos, and the model's context has {most:,} for "
                f"prompt and answer: it must be at most {most - 1:,}. Send shorter texts or fewer images.",
            )
        self.prompt_tokens, self.room = ids.shape[-1], None if most is None else most - length

    def check_answer(self, field: str, number: int) -> None:
        """Compare the tokens that a request asks for with the room for the answer.

        Args:
            field: that has the number: of the answer's tokens, or of all tokens if it is `max_length`.

        Raises:
            FieldError: they do not fit.
        """
        if self.room is None:
            return
        before = self.prompt_tokens if field.endswith("max_length") else 0
        if number > before + self.room:
            raise FieldError(
                field,
                f"`{field}` is {number:,}: with this prompt it must be an integer from {before + 1:,} to "
                f"{before + self.room:,}, because the model's context has {self.room:,} tokens besides the prompt "
                "(without its videos). Ask for fewer, or send a shorter prompt.",
            )
