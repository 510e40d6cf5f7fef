"""The parts of the server: one model, and transformers' request handlers, which get requests with videos already read.

A request takes three steps. `RequestReader` reads its videos and images, and puts them in the place of their URLs.
transformers' handler turns the messages into a conversation, and asks the processor for the model's inputs.
`RequestProcessor` makes these inputs from the videos and images. `Engine` generates. Streaming and the form of the
answers are those of transformers. `RequestFlow` says what runs when, and where.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import BaseHandler, Modality
from transformers.utils import logging

from ..loading import load_model
from ..video.download import DownloadRules, download_rules
from ..video.limits import DEFAULT_LIMITS, MediaLimits
from .engine import Engine, EngineUnavailable, GenerationFailed
from .fields import check_fields, check_names, token_limit_of
from .flow import RequestFlow
from .gate import OPEN_GATE, Gate, GateRules, error_response
from .handover import Handover
from .kinds import FieldError
from .metrics import MEDIA_TYPE, CountRequests, RequestCounts, write_metrics
from .prompts import RequestProcessor
from .request_limits import DEFAULT_REQUEST_LIMITS, RequestLimits
from .requests import RequestReader
from .server import DOWNLOADS, MAX_NUM_SEQS, MAX_QUEUE, STEP_TIMEOUT
from .turns import QueueFull

logger = logging.get_logger(__name__)

# Fields of a request that OpenAI's API lacks. transformers accepts the first, but only in chat completions.
_EXTRA_FIELDS = frozenset({"chat_template_kwargs", "retention_ratio"})
# `Retry-After` in seconds while the model is stuck or the server restarts, neither of which is over in an instant.
_RETRY_SECONDS = 30


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


class _VideoHandler(BaseHandler):
    """One request: checks and reads it, and passes it to transformers' handler, the next of the base classes.

    `RequestFlow` calls the methods in the order in which they stand here, each in a thread.

    Args:
        served: the model.
        reader: reads the media.
        downloads: what may be downloaded.
    """

    messages_field: str

    def __init__(self, served: ServedModel, reader: RequestReader, downloads: DownloadRules):
        self.handover = Handover()
        super().__init__(served, self.handover)
        self.served = served
        self.reader = reader
        self.downloads = downloads
        self._is_read = False
        self._token_limit: tuple[str, int] | None = None  # by the name that the client gave it
        self._prompt: RequestProcessor  # of `_resolve_model`

    def accept(self, body: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request that change its answer.

        Raises:
            FieldError: a field is unknown or invalid.
        """
        self._validate_request(body)
        takes_tools = "tools" in str(self.served.processor.chat_template)
        fields = check_fields(body, takes_tools, self.reader.request_limits)
        self._token_limit, body = token_limit_of(body), fields
        self.reader.check(body, self.messages_field)
        self._check_tokens(body)
        self.handover.seed = body.pop("seed", None)  # transformers would set torch's common state
        return body

    def has_downloads(self, body: dict[str, Any]) -> bool:
        """Whether media of the request are on the web."""
        return self.reader.has_downloads(body, self.messages_field)

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """Read the media of the request. A second call changes nothing.

        Raises:
            ValueError: the messages are invalid, or a video or image cannot be read.
        """
        if not self._is_read:
            with download_rules(self.downloads):
                body = self.reader.read(body, self.messages_field)
            self._is_read = True
        return body

    def _validate_request(self, body: dict) -> None:
        check_names(body, getattr(self._valid_params_class, "__mutable_keys__", frozenset()) | _EXTRA_FIELDS)

    def _check_tokens(self, body: dict) -> None:
        vocabulary = self.served.model.config.get_text_config().vocab_size
        for token in body.get("logit_bias", ()):
            if int(token) >= vocabulary:
                raise FieldError(
                    "logit_bias", f"`logit_bias` has the token {token}: the model has {vocabulary} tokens, from 0 on."
                )

    def _resolve_model(self, body: dict) -> tuple[str, PreTrainedModel, RequestProcessor]:
        settings = {} if body.get("retention_ratio") is None else {"retention_ratio": body["retention_ratio"]}
        model = self.served.model
        self._prompt = RequestProcessor(self.served.processor, model, self.messages_field, settings)
        return self.served.name, model, self._prompt

    def _build_generation_config(
        self, body: dict, model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        if self._token_limit is not None:
            self._prompt.check_answer(*self._token_limit)
        elif config.max_new_tokens is not None:  # the default
            room = (config.max_new_tokens, self.reader.request_limits.max_new_tokens, self._prompt.room)
            config.max_new_tokens = min(tokens for tokens in room if tokens is not None)
        # Without this, `temperature` and `top_p` do nothing if the model's own settings do not sample.
        temperature = body.get("temperature")
        if temperature or (temperature is None and body.get("top_p", 1) < 1):
            config.do_sample = True
        return config


class ChatHandler(_VideoHandler, ChatCompletionHandler):
    """`/v1/chat/completions`. A stream ends as OpenAI's do, see `_build_chunk_sse`."""

    messages_field = "messages"
    _includes_usage = False

    def accept(self, body: dict[str, Any]) -> dict[str, Any]:
        """See the base class."""
        fields = super().accept(body)
        self._includes_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return fields

    def _build_chunk_sse(self, request_id: str = "", *args: Any, **kwargs: Any) -> str:
        """A chunk of a stream.

        transformers gives the usage to the last chunk. Behind that come a chunk of the usage alone, if the request asks
        for it, and the end mark.
        """
        usage = kwargs.pop("usage", None)
        event = super()._build_chunk_sse(request_id, *args, **kwargs)
        if usage is None:
            return event
        if self._includes_usage:
            chunk = json.loads(event.removeprefix("data: "))
            chunk |= {"choices": [], "usage": usage.model_dump(exclude_none=True)}
            event += self.chunk_to_sse(json.dumps(chunk, separators=(",", ":")))
        return event + "data: [DONE]\n\n"


class ResponsesHandler(_VideoHandler, ResponseHandler):
    """`/v1/responses`."""

    messages_field = "input"


def build_app(
    served: ServedModel,
    *,
    num_frames: int,
    local_media_path: Path | None = None,
    request_limits: RequestLimits = DEFAULT_REQUEST_LIMITS,
    limits: MediaLimits = DEFAULT_LIMITS,
    max_num_seqs: int = MAX_NUM_SEQS,
    max_queue: int = MAX_QUEUE,
    step_timeout: float = STEP_TIMEOUT,
    gate: GateRules = OPEN_GATE,
    downloads: DownloadRules = DOWNLOADS,
) -> FastAPI:
    """The web application; see `serve` for its addresses and arguments."""
    engine = Engine(served.model, served.processor, max_num_seqs, step_timeout)
    flow = RequestFlow(engine, max_queue)
    counts = RequestCounts()
    reader = RequestReader(served.name, num_frames, local_media_path, served.processor, request_limits, limits)
    model = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "flashvid_hf"}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await engine.stop()

    app = FastAPI(title="flashvid_hf", lifespan=lifespan)
    app.add_middleware(Gate, rules=gate)
    app.add_middleware(CountRequests, counts=counts)  # also those that the gate refuses

    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        return await flow.answer(ChatHandler(served, reader, downloads), request)

    @app.post("/v1/responses")
    async def create_response(request: Request) -> Response:
        return await flow.answer(ResponsesHandler(served, reader, downloads), request)

    @app.get("/v1/models")
    async def list_models() -> dict:
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def check_health() -> JSONResponse:
        trouble = engine.find_trouble()
        if trouble is None:
            return JSONResponse({"status": "ok"})
        content = {"status": "unhealthy", "reason": trouble, "step_seconds": round(engine.step_seconds, 1)}
        return JSONResponse(content, 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(write_metrics(counts, flow.visitors, engine), media_type=MEDIA_TYPE)

    @app.exception_handler(ValueError)
    async def refuse(_: Request, error: ValueError) -> JSONResponse:
        logger.warning("A request was refused: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        status, param = getattr(error, "status", 400), getattr(error, "param", None)
        return error_response(status, str(error), param=param)

    @app.exception_handler(HTTPException)
    async def pass_on(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, error.detail)

    @app.exception_handler(QueueFull)
    async def put_off(_: Request, error: QueueFull) -> JSONResponse:
        response = error_response(429, str(error), "rate_limit_error")
        response.headers["Retry-After"] = str(error.retry_after)
        return response

    @app.exception_handler(EngineUnavailable)
    async def turn_away(_: Request, error: EngineUnavailable) -> JSONResponse:
        response = error_response(503, str(error), "server_error")
        response.headers["Retry-After"] = str(_RETRY_SECONDS)
        return response

    @app.exception_handler(GenerationFailed)
    async def admit_failure(_: Request, error: GenerationFailed) -> JSONResponse:
        return error_response(500, str(error), "server_error")

    @app.exception_handler(Exception)  # a fault of the server, which the log shows
    async def admit_fault(_: Request, error: Exception) -> JSONResponse:
        return error_response(500, "The server failed. Its log has the reason.", "server_error")

    return app
