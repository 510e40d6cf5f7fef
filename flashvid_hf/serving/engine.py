"""The thread that runs the model: it reads one waiting prompt, writes one token of every answer, and begins again.

The engine alone touches the model. `Answer`s come from the event loop, wait in a queue, and get their tokens there. An
answer that nobody waits for any more is dropped before the next step. A step that fails ends its answers with an error,
and the engine goes on with the next ones.
"""

import asyncio
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from .rows import Row, Rows, check_shared

logger = logging.get_logger(__name__)

# How often the event loop looks whether a step has become too long. A second costs nothing and delays no one.
_WATCH_SECONDS = 1.0
# Seconds that the server waits at its end for the step that runs.
_STOP_SECONDS = 5.0


class EngineUnavailable(RuntimeError):
    """The model cannot answer now: a step does not end, or the server is about to stop."""


class GenerationFailed(RuntimeError):
    """A step of this answer failed by no fault of its request. The log has the reason."""


class Answer:
    """A request that the engine answers. Its methods belong to the event loop.

    Args:
        inputs: arguments of `generate`, of one prompt.
        config: settings of the generation.
        seed: makes sampling repeatable.
        client: who has sent the request.
        skip_special_tokens: whether the text of the answer, in which stop texts are looked for, lacks special tokens.

    Raises:
        ValueError: the settings ask for more than tokens chosen one after the other.
    """

    def __init__(
        self,
        inputs: dict[str, Any],
        config: GenerationConfig,
        seed: int | None = None,
        client: str = "",
        skip_special_tokens: bool = True,
    ):
        check_shared(config)
        self.inputs: dict[str, Any] | None = inputs  # until the prompt has been read
        self.config, self.seed, self.client = config, seed, client
        self.skip_special_tokens = skip_special_tokens
        self.prompt_tokens: int = inputs["input_ids"].shape[-1]
        self.tokens: list[int] = []
        self.is_over = False
        self._error: Exception | None = None
        self._began, self._changed = False, asyncio.Event()

    async def read(self) -> None:
        """Wait until the prompt has been read and the first token is there.

        Raises:
            Exception: whatever ended the answer before.
        """
        while not (self._began or self.is_over):
            await self._wait()
        if not self._began and self._error is not None:
            raise self._error

    async def more(self, seen: int) -> list[int]:
        """The tokens after the first `seen` ones, at least one of them; none if the answer is whole.

        Raises:
            Exception: the answer ended with an error.
        """
        while len(self.tokens) <= seen and not self.is_over:
            await self._wait()
        if len(self.tokens) <= seen and self._error is not None:
            raise self._error
        return self.tokens[seen:]

    async def whole(self) -> list[int]:
        """All tokens, once the answer is whole.

        Raises:
            Exception: the answer ended with an error.
        """
        while not self.is_over:
            await self._wait()
        if self._error is not None:
            raise self._error
        return self.tokens

    def add(self, token: int) -> None:
        """Note the next token."""
        if not self.is_over:
            self._began = True
            self.tokens.append(token)
            self._changed.set()

    def end(self, error: Exception | None = None) -> None:
        """Note that no more tokens come, or that nobody waits for them any more."""
        if not self.is_over:
            self.is_over, self.inputs, self._error = True, None, error
            self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class EngineCounts:
    """What the engine has done since it began, for `/metrics`."""

    def __init__(self) -> None:
        self.prompt_tokens = self.generated_tokens = self.failures = 0
        self.steps: Counter[str] = Counter()  # of each kind
        self.seconds: defaultdict[str, float] = defaultdict(float)  # that the steps of each kind took together


# A row's next token if there is one, whether its answer is over, and the error that ended it.
_Choice = tuple[int | None, bool, Exception | None]


class Engine:
    """Answers up to `max_num_seqs` requests at the same time.

    One of these places is kept for other clients than the one that has all others. So long answers of one client do not
    keep out the rest.

    Args:
        model: a FlashVID model.
        processor: of the model.
        max_num_seqs: answers that are written at the same time.
        step_timeout: seconds after which a step counts as stuck. All requests then get an error, and so do new ones
            until the step ends.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, max_num_seqs: int, step_timeout: float):
        self.max_num_seqs, self.step_timeout = max_num_seqs, step_timeout
        self.counts = EngineCounts()
        self._model, self._processor = model, processor
        self._rows = Rows(model)
        self._running: list[Answer] = []  # the answer of each row
        self._waiting: deque[Answer] = deque()
        self._changed = threading.Condition()  # guards `_waiting` and `_stopping`
        self._stopping = self._is_broken = False
        self._step: tuple[str, float] | None = None  # the step that runs, and when it began
        self._answers: set[Answer] = set()  # those that are not over; of the event loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # What the event loop calls.

    def start(self) -> None:
        """Begin to answer. The event loop that runs now is the one of all answers."""
        self._loop = asyncio.get_running_loop()
        layers = getattr(self._model.config.get_text_config(), "layer_types", None) or ()
        if self.max_num_seqs > 1 and any(layer != "full_attention" for layer in layers):
            logger.warning("Some layers of the model lack full attention: it answers one request at a time.")
            self.max_num_seqs = 1
        self._thread.start()
        self._watch()

    async def stop(self) -> None:
        """End all answers with an error, and the thread after its step."""
        self._end_all(EngineUnavailable("The server stops."))
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._watcher is not None:
            self._watcher.cancel()
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def submit(self, answer: Answer) -> None:
        """Let an answer wait for its turn.

        Raises:
            EngineUnavailable: the model cannot answer now.
        """
        if trouble := self.find_trouble():
            raise EngineUnavailable(trouble)
        self._answers.add(answer)
        with self._changed:
            self._waiting.append(answer)
            self._changed.notify()

    def drop(self, answer: Answer) -> None:
        """Forget an answer that nobody waits for. If it is being written, that ends at its next step."""
        answer.end()
        self._answers.discard(answer)
        with self._changed:
            if answer in self._waiting:
                self._waiting.remove(answer)

    @property
    def num_running(self) -> int:
        """Answers that are being written."""
        return len(self._running)

    @property
    def step_seconds(self) -> float:
        """How long the current step has lasted; 0 between steps."""
        step = self._step
        return 0.0 if step is None else time.monotonic() - step[1]

    def find_trouble(self) -> str | None:
        """Why the model cannot answer now; `None` if it can."""
        step, seconds = self._step, self.step_seconds
        if self._stopping:
            return "The server stops."
        if step is not None and seconds > self.step_timeout:
            return f"The model is stuck: it has been {step[0]} for {seconds:.0f} seconds."
        if self._is_broken or not self._thread.is_alive():
            return "The model no longer works: restart the server. Its log has the reason."
        return None

    def _watch(self) -> None:
        if (trouble := self.find_trouble()) and self._answers:
            logger.error("%s Its %d requests get an error.", trouble, len(self._answers))
            self._end_all(EngineUnavailable(trouble))
        assert self._loop is not None
        self._watcher = self._loop.call_later(_WATCH_SECONDS, self._watch)

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            self._waiting.clear()
        for answer in self._answers:
            answer.end(error)
        self._answers.clear()

    def _deliver(self, answers: list[Answer], choices: list[_Choice]) -> None:
        for answer, (token, is_over, error) in zip(answers, choices, strict=True):
            if token is not None:
                answer.add(token)
            if is_over:
                answer.end(error)
                self._answers.discard(answer)

    # What the thread of the model runs.

    def _run(self) -> None:
        while not self._stopping:
            answer = self._next()
            if answer is not None:
                with self._timed("reading a prompt"):
                    choices = self._read(answer)
                self._send([answer], choices)
            places = [place for place, answer in enumerate(self._running) if not answer.is_over]
            if len(places) < len(self._running):
                self._keep(places)
            if self._running:
                answers = self._running
                with self._timed("writing tokens"):
                    choices = self._write()
                self._send(answers, choices)

    def _next(self) -> Answer | None:
        """The next answer whose prompt is to be read now, if there is one. Waits if there is nothing to do."""
        with self._changed:
            while not (self._stopping or self._waiting or self._running):
                self._changed.wait()
            if len(self._running) < self.max_num_seqs:
                running = Counter(answer.client for answer in self._running)
                for answer in self._waiting:
                    if running[answer.client] < max(self.max_num_seqs - 1, 1):
                        self._waiting.remove(answer)
                        return answer
            return None

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self._step = (name, began)
        try:
            yield
        finally:
            self._step = None
            self.counts.steps[name] += 1
            self.counts.seconds[name] += time.monotonic() - began

    def _read(self, answer: Answer) -> list[_Choice]:
        """Read a prompt, and choose the first token of its answer."""
        inputs = answer.inputs
        if inputs is None:  # nobody waits for it any more
            return [(None, True, None)]
        try:
            tokenizer, skips = self._processor.tokenizer, answer.skip_special_tokens
            row = Row(self._model, inputs, answer.config, answer.seed, tokenizer, skips)
            (choice,) = self._choose([row])
            token, is_over, _ = choice
            if token is not None and not is_over:
                self._rows.add(row, token)
                self._running.append(answer)
            self.counts.prompt_tokens += answer.prompt_tokens
        except Exception as failure:
            choice = (None, True, self._explain("reading a prompt", failure))
        return [choice]

    def _write(self) -> list[_Choice]:
        """Write the next token of every row."""
        number = len(self._running)
        try:
            self._rows.step()
            choices = self._choose(self._rows.rows)
            self._keep([place for place, (_, is_over, _) in enumerate(choices) if not is_over], choices)
        except Exception as failure:
            self._keep([])
            choices = [(None, True, self._explain("writing tokens", failure))] * number
        return choices

    def _keep(self, places: list[int], choices: list[_Choice] | None = None) -> None:
        """Go on with the rows in these places."""
        self._running = [self._running[place] for place in places]
        self._rows.keep(places, None if choices is None else [choices[place][0] for place in places])

    def _choose(self, rows: list[Row]) -> list[_Choice]:
        """Choose the next token of each row. The values of all rows come from the device at once."""
        errors: dict[int, Exception] = {}
        values = []
        for place, row in enumerate(rows):
            try:
                values.append(row.choose())
            except Exception as failure:  # such as a token of `logit_bias` that the model does not have
                errors[place] = self._explain("choosing a token", failure)
                values.append(torch.zeros(3, dtype=torch.long, device=row.logits.device))
        choices: list[_Choice] = []
        for place, (token, is_over, is_usable) in enumerate(torch.stack(values).tolist()):
            if place in errors:
                choices.append((None, True, errors[place]))
            elif not is_usable:
                reason = "The scores of the next token are not finite. Choose a `temperature` nearer to 1, or 0."
                choices.append((None, True, ValueError(reason)))
            else:
                self.counts.generated_tokens += 1
                choices.append((token, bool(is_over) or rows[place].is_stopped_by(token), None))
        return choices

    def _explain(self, name: str, failure: Exception) -> Exception:
        """The error that a client gets."""
        if isinstance(failure, ValueError):  # the request's own fault
            return failure
        logger.error("The model failed while %s: %s", name, failure, exc_info=failure)
        self.counts.failures += 1
        if torch.cuda.is_available():
            try:
                torch.cuda.empty_cache()  # most failures are of memory
                torch.cuda.synchronize()
            except Exception:  # after some errors a process can use its GPU no more
                self._is_broken = True
        return GenerationFailed("The model failed while it answered. The server's log has the reason.")

    def _send(self, answers: list[Answer], choices: list[_Choice]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, answers, choices)
        except RuntimeError:  # the loop is closed: the server has ended while this step ran
            self._stopping = True
