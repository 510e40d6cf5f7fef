"""The parts of the server: one model, and transformers' request handlers, which get requests with videos already read.

A request takes three steps. `RequestReader` reads its videos and images, and puts them in the place of their URLs.
transformers' handler turns the messages into a conversation, and asks the processor for the model's inputs.
`RequestProcessor` makes these inputs from the videos and images. Generation, streaming and the form of the answers are
those of transformers.
"""

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from transformers import BatchFeature, GenerationConfig, LogitsProcessorList, PreTrainedModel, ProcessorMixin
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import X_REQUEST_ID, BaseHandler, GenerationState, Modality
from transformers.utils import logging

from ..loading import load_model
from ..video.batching import convert_to_tensors
from ..video.limits import DEFAULT_LIMITS, MediaLimits
from ..video.message_parts import check_sizes
from ..video.pipeline_flashvid import media_arguments
from .fields import SeedFirst, check_fields
from .requests import TEMPLATE_ARGUMENTS, RequestReader

logger = logging.get_logger(__name__)

# Fields of a request that OpenAI's API lacks. transformers accepts the first, but only in chat completions.
_EXTRA_FIELDS = ("chat_template_kwargs", "retention_ratio")


@dataclass(frozen=True)
class ServedModel:
    """The one model of a server. It replaces transformers' `ModelManager`, which loads and unloads several models."""

    name: str
    model: PreTrainedModel
    processor: ProcessorMixin

    @classmethod
    def load(cls, name: str, *, device: str = "auto", revision: str | None = None, **settings: Any) -> "ServedModel":
        """Load any checkpoint that `find_family` knows, as a FlashVID model.

        Args:
            name: folder or Hub id, by which requests name the model.
            device: "auto" or a device; a number is the index of an accelerator.
            revision: branch, tag or commit of a model on the Hub.
            settings: further arguments of `from_pretrained`; those with the value None are left out.

        Raises:
            ValueError: no family reads the checkpoint, or a setting is out of range.
        """
        given = {setting: value for setting, value in settings.items() if value is not None}
        model, processor = load_model(name, device=device, revision=revision, **given)
        model.register_forward_hook(_log_video_tokens)
        return cls(name, model, processor)

    def get_model_modality(self, *_: Any, **__: Any) -> Modality:
        """The model takes text, images and videos. transformers would look for its class among the library's own."""
        return Modality.VLM


def _log_video_tokens(_: PreTrainedModel, __: Any, outputs: Any) -> None:
    report = getattr(outputs, "report", None)  # only the call that reads the prompt has a report
    if report is not None and report.tokens:
        logger.info("%s", report)


class RequestProcessor:
    """The processor of one request. transformers' handlers use it as a tokenizer and for its chat template.

    Args:
        processor: of the model.
        device: of the model.
        settings: arguments of `generate` that are added to the inputs.
    """

    def __init__(self, processor: ProcessorMixin, device: torch.device, settings: dict[str, Any]):
        self.tokenizer = processor.tokenizer
        self._processor = processor
        self._device = device
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """The ids of a text. `generate` gets this object as its tokenizer, which it needs for stop strings."""
        return self.tokenizer(*args, **kwargs)

    def apply_chat_template(self, conversation: list[dict], tools: list | None = None, **kwargs: Any) -> BatchFeature:
        """The model's inputs for a conversation whose videos are `VideoClip`s and whose images are `Picture`s.

        Raises:
            ValueError: the number of placeholders in the prompt is not the number of videos or of images.
        """
        variables = {name: v for name, v in kwargs.items() if name not in TEMPLATE_ARGUMENTS | {"num_frames"}}
        parts = [part for message in conversation for part in message["content"]]
        clips = [part["url"] for part in parts if part["type"] == "video"]
        pictures = [part["url"] for part in parts if part["type"] == "image"]
        messages = [
            {**message, "content": [{k: v for k, v in part.items() if k != "url"} for part in message["content"]]}
            for message in conversation
        ]
        prompt = self._processor.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False, **variables
        )
        _check_placeholders(prompt, self._processor.video_token, len(clips), "videos")
        _check_placeholders(prompt, self._processor.image_token, len(pictures), "images")
        media = media_arguments(clips, [picture.image for picture in pictures], self._device, self._processor)
        inputs = convert_to_tensors(self._processor(text=[prompt], **media), "pt")
        check_sizes(inputs, clips, pictures, self._processor)
        inputs.update(self._settings)
        return inputs


def _check_placeholders(prompt: str, token: str, number: int, kind: str) -> None:
    # Some templates drop the media of some roles. The model would then answer without them.
    if prompt.count(token) != number:
        raise ValueError(
            f"The prompt has {prompt.count(token)} placeholders {token!r} for {number} {kind}: put {kind} into user "
            "messages, and no placeholder into texts."
        )


class _VideoHandler(BaseHandler):
    """Reads the media of a request, and passes the request to transformers' handler, the next of the base classes."""

    messages_field: str

    def __init__(self, served: ServedModel, generation_state: GenerationState, reader: RequestReader):
        super().__init__(served, generation_state)
        self.served = served
        self.reader = reader

    async def handle_request(self, body: dict, request_id: str):
        """Answer a request, streamed or not.

        Raises:
            ValueError: the request is invalid, found by this package.
            HTTPException: the request is invalid, found by transformers.
        """
        self._validate_request(body)
        body = check_fields(body, "tools" in str(self.served.processor.chat_template))
        if body.get("retention_ratio") is not None:  # `generate` checks it too late, after a stream has begun
            self.served.model.config.override(retention_ratio=body["retention_ratio"])
        # In a thread, so that other answers go on streaming.
        body = await asyncio.to_thread(self.reader.read, body, self.messages_field)
        return await super().handle_request(body, request_id)

    def _validate_request(self, body: dict) -> None:
        super()._validate_request({name: value for name, value in body.items() if name not in _EXTRA_FIELDS})

    def _resolve_model(self, body: dict) -> tuple[str, PreTrainedModel, RequestProcessor]:
        settings = {} if body.get("retention_ratio") is None else {"retention_ratio": body["retention_ratio"]}
        # transformers would set the seed now, while another request may run.
        if (seed := body.pop("seed", None)) is not None:
            settings["logits_processor"] = LogitsProcessorList([SeedFirst(seed)])
        model = self.served.model
        return self.served.name, model, RequestProcessor(self.served.processor, model.device, settings)

    def _build_generation_config(
        self, body: dict, model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        # Without this, `temperature` and `top_p` do nothing if the model's own settings do not sample.
        temperature = body.get("temperature")
        if temperature or (temperature is None and body.get("top_p", 1) < 1):
            config.do_sample = True
        return config


class ChatHandler(_VideoHandler, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    messages_field = "messages"


class ResponsesHandler(_VideoHandler, ResponseHandler):
    """`/v1/responses`."""

    messages_field = "input"


def build_app(
    served: ServedModel, *, num_frames: int, allow_local_files: bool, limits: MediaLimits = DEFAULT_LIMITS
) -> FastAPI:
    """The web application; see `serve` for its addresses and arguments."""
    state = GenerationState()  # runs the requests one after the other
    reader = RequestReader(served.name, num_frames, allow_local_files, served.processor, limits)
    chat, responses = ChatHandler(served, state, reader), ResponsesHandler(served, state, reader)
    model = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "flashvid_hf"}
    app = FastAPI(title="flashvid_hf")

    def request_id(request: Request) -> str:
        return request.headers.get(X_REQUEST_ID) or str(uuid.uuid4())

    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request, body: dict):
        return await chat.handle_request(body, request_id(request))

    @app.post("/v1/responses")
    async def create_response(request: Request, body: dict):
        return await responses.handle_request(body, request_id(request))

    @app.get("/v1/models")
    def list_models() -> dict:
        return {"object": "list", "data": [model]}

    @app.get("/health")
    def check_health() -> dict:
        return {"status": "ok"}

    @app.exception_handler(ValueError)
    async def refuse(_: Request, error: ValueError) -> JSONResponse:
        logger.warning("A request was refused: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        return _error(400, str(error))

    @app.exception_handler(HTTPException)
    async def pass_on(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, error.detail)

    return app


def _error(status: int, message: str) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)
