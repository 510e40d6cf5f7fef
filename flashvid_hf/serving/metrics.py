"""`GET /metrics`: counters in the text form of Prometheus, with vLLM's names where it has the same."""

import time
from collections import Counter
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine import Engine
from .turns import Visitors

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RequestCounts:
    """How many requests to the API were answered, by their status, and how long they took together."""

    def __init__(self) -> None:
        self.by_status: Counter[int] = Counter()
        self.seconds = 0.0


class CountRequests:
    """Middleware that counts the requests to addresses below `/v1/`.

    Args:
        app: the application.
        counts: where they are counted.
    """

    def __init__(self, app: ASGIApp, counts: RequestCounts):
        self._app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, and count it when it has been answered."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500  # of a request that ends without an answer

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._counts.by_status[status] += 1
            self._counts.seconds += time.monotonic() - began


def write_metrics(requests: RequestCounts, visitors: Visitors, engine: Engine) -> str:
    """The text that Prometheus reads."""
    counts, running = engine.counts, engine.num_running
    lines: list[str] = []

    def add(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
        lines.extend((f"# HELP flashvid_{name} {text}", f"# TYPE flashvid_{name} {kind}"))
        lines.extend(f"flashvid_{name}{label} {value:.10g}" for label, value in samples)

    by_status = sorted(requests.by_status.items())
    add("requests_total", "counter", "Requests by status.", [(f'{{status="{s}"}}', n) for s, n in by_status])
    add(
        "e2e_request_latency_seconds",
        "summary",
        "Seconds from a request to the end of its answer.",
        [("_sum", requests.seconds), ("_count", requests.by_status.total())],
    )
    add("num_requests_running", "gauge", "Answers that are being written.", [("", running)])
    add("num_requests_waiting", "gauge", "All other requests.", [("", max(len(visitors) - running, 0))])
    add("prompt_tokens_total", "counter", "Tokens of prompts, before compression.", [("", counts.prompt_tokens)])
    add("generation_tokens_total", "counter", "Tokens of answers.", [("", counts.generated_tokens)])
    add("failures_total", "counter", "Steps that failed by the server's fault.", [("", counts.failures)])
    kinds = sorted(counts.steps)
    add("steps_total", "counter", "Runs of the model.", [(f'{{kind="{k}"}}', counts.steps[k]) for k in kinds])
    of_kind = [(f'{{kind="{kind}"}}', counts.seconds[kind]) for kind in kinds]
    add("step_seconds_total", "counter", "Seconds of the model's runs.", of_kind)
    add("current_step_seconds", "gauge", "Seconds of the step that runs now.", [("", engine.step_seconds)])
    return "\n".join(lines) + "\n"
