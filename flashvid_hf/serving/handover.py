"""Between transformers' request handlers and the engine: what a handler would generate, and the tokens that it gets.

A handler of transformers is a coroutine that prepares the model's inputs, generates, and puts the text into the form of
the answer. All but the generation is work for a thread, because it tokenizes, resizes frames and parses text. So
`HandlerRun` runs the coroutine in a thread up to the point where it needs the tokens, pauses it while the engine
writes, and then runs it to its end. A stream does not pause: it gets the tokens one after the other, as `StreamedText`.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from transformers import GenerationConfig
from transformers.cli.serving.utils import (
    GenerationState,
    _StreamError,
    get_response_template,
    response_events_to_chunks,
)
from transformers.utils import logging

from .engine import Answer
from .stops import AnswerText, cut_at_stop

logger = logging.get_logger(__name__)


class _Pause:
    """Where a handler waits for the tokens of its answer, which `HandlerRun.go_on` sends."""

    def __await__(self) -> Generator["_Pause", list[int], list[int]]:
        return (yield self)


class Handover(GenerationState):
    """Stands for the generation of one request in transformers' handler, and notes what shall be generated.

    Args:
        seed: of the request.
    """

    def __init__(self, seed: int | None = None):
        super().__init__()
        self.seed = seed
        self.answer: Answer | None = None

    def use_continuous_batching(self, *_: Any) -> bool:
        """Not transformers' own, see `rows.py`."""
        return False

    def get_manager(self, *_: Any, **__: Any) -> "Handover":
        """This object is the manager of the generation too."""
        return self

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple["StreamedText", "StreamedText"]:
        """The text of the answer, which stands for transformers' queue and its streamer."""
        self.answer = Answer(dict(inputs), gen_config, self.seed, skip_special_tokens=response_parser is None)
        text = StreamedText(self.answer, processor.backend_tokenizer, response_parser)
        return text, text

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: dict[str, Any], gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, list[int]]:
        """The text of the whole answer, how many tokens the prompt has, and the answer's tokens."""
        is_plain = get_response_template(processor, model) is None  # then nothing parses the text
        self.answer = Answer(dict(inputs), gen_config, self.seed, skip_special_tokens=is_plain)
        tokens = await _Pause()
        text, is_stopped = cut_at_stop(processor.decode(tokens, skip_special_tokens=is_plain), gen_config.stop_strings)
        processor.answer_text = text
        if is_stopped:
            _end_by_stop(gen_config)
        return text, self.answer.prompt_tokens, tokens


def _end_by_stop(config: GenerationConfig) -> None:
    """Let the handler say "stop", and not "length", if the last token that was allowed completed the stop text."""
    config.max_new_tokens = None


class HandlerRun:
    """One run of a handler, in parts that a thread can run.

    Args:
        coroutine: of the handler.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]):
        self._coroutine = coroutine

    def go_on(self, tokens: list[int] | None = None) -> Any:
        """Run the handler until it needs the tokens, or to its end.

        Args:
            tokens: the tokens that it has waited for; `None` at its beginning.

        Returns:
            The response; `None` if the handler waits for tokens.
        """
        try:
            pause = self._coroutine.send(tokens)  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value
        assert isinstance(pause, _Pause), "transformers' handlers wait for the generation alone"
        return None


class StreamedText:
    """The text of an answer while it is written: pieces of it, or parts that the parser finds in it, then `None`.

    It has the methods of a queue and of a streamer that transformers' handlers call.

    Args:
        answer: that is being written.
        tokenizer: of the `tokenizers` library.
        parser: of transformers, which finds tool calls and reasoning in the text; `None` for plain text.
    """

    def __init__(self, answer: Answer, tokenizer: Any, parser: Any):
        self._answer, self._parser = answer, parser
        self._text = AnswerText(tokenizer, answer.config.stop_strings, skip_special_tokens=parser is None)
        self._items: list[Any] = [] if parser is None else response_events_to_chunks(parser.initial_events)
        self.total_tokens = 0

    async def get(self) -> Any:
        """The next piece. Waits for it."""
        while not self._items:
            try:
                tokens = await self._answer.more(self.total_tokens)
            except Exception as error:
                # The handler puts the message between quotes without escaping it.
                self._items.append(_StreamError(" ".join(str(error).replace('"', "'").replace("\\", "/").split())))
                break
            self.total_tokens += len(tokens)
            for token in tokens:
                self._take(self._text.take(token))
            if not tokens:
                self._finish()
        return self._items.pop(0)

    def get_nowait(self) -> Any:
        """The next piece, if there is one already; as of a queue."""
        if not self._items:
            raise asyncio.QueueEmpty
        return self._items.pop(0)

    def cancel(self) -> None:
        """The client has gone away. What ends the answer then is `RequestFlow`, which watches the connection."""

    def _take(self, text: str) -> None:
        if text and self._parser is None:
            self._items.append(text)
        elif text:
            self._items.extend(response_events_to_chunks(self._parser.feed(text)))

    def _finish(self) -> None:
        self._take(self._text.finish())
        if self._text.is_stopped:
            _end_by_stop(self._answer.config)
        if self._parser is not None:
            try:
                self._items.extend(response_events_to_chunks(self._parser.finalize()[1]))
            except (ValueError, RuntimeError) as error:  # the answer ended inside a tool call
                logger.warning("The end of an answer cannot be parsed: %s", error)
        self._items.append(None)
