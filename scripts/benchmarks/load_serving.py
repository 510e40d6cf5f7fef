"""Load test of `flashvid-hf serve`: 16 good clients, alone and then beside one bad client of each kind.

    python scripts/benchmarks/load_serving.py        the trained demo, about one minute

A good client asks about a video or in text, and asks again a second after its answer. The bad clients send bodies of
100 MB and of millions of values, a stop string of 100 KB and a text of 40 KB, addresses of a download that sends a byte
a second and of one that never ends, long answers that they do not wait for, and 400 requests at once.

The good clients notice the bad ones, and the exit status is 1, if one of these is false:

- every good request gets the status 200 and the answer that it gets from the idle server;
- the median of the latencies of all good requests, and their 95th percentile, are at most twice those without bad
  clients, plus half a second, because all clients work on the server's own machine;
- `/health` always answers with 200, in less than a second;
- no client gets the status 500.

Clients have addresses of their own on Linux only. Elsewhere the server takes all for one client, and is not fair to
each of them.
"""

import argparse
import http.server
import json
import socket
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from serving_clients import CHAT, CLIP, DEMO, Reply, address, ask, get, question, start_server

QUESTIONS = [
    question(DEMO, "Which shape appears first?", video=str(CLIP), max_tokens=16),
    question(DEMO, "What flashes up?", video=str(CLIP), max_tokens=16, stream=True),
    question(DEMO, "How many shapes are there?", max_tokens=16),
]
NUM_GOOD = 16
PAUSE = 1.0  # seconds between an answer and the next question of a good client
MOST_HEALTH_SECONDS = 1.0
DOWNLOAD_SECONDS, DOWNLOAD_BYTES = 8.0, 50_000_000  # the server's limits here, so that the test meets them in time
BIG_BODIES = (b'{"messages": [' + b"1," * 25_000_000 + b"1]}", b'{"model": "' + b"x" * 100_000_000 + b'"}')
NUM_AT_ONCE = 400


@dataclass
class Phase:
    """What the clients saw.

    Args:
        seconds: that it lasts.
    """

    seconds: float
    good: list[Reply] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)  # of good clients
    health: list[float] = field(default_factory=list)  # seconds
    bad: defaultdict[str, list[Reply]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.end = time.perf_counter() + self.seconds

    @property
    def lasts(self) -> bool:
        return time.perf_counter() < self.end


def be_good(port: int, number: int, phase: Phase, answers: list[str]) -> None:
    """Ask and wait in turn."""
    time.sleep(PAUSE * number / NUM_GOOD)  # good clients do not come all at once
    while phase.lasts:
        place = (number + len(phase.good)) % len(QUESTIONS)
        reply = ask(port, QUESTIONS[place], number)
        phase.good.append(reply)
        if reply.status != 200:
            phase.troubles[f"status {reply.status}: {reply.text[:100]}"] += 1
        elif reply.text != answers[place]:
            phase.troubles[f"the answer {reply.text!r:.100} in the place of {answers[place]!r:.100}"] += 1
        time.sleep(PAUSE)


def watch_health(port: int, phase: Phase) -> None:
    while phase.lasts:
        status, text, seconds = get(port, "/health")
        phase.health.append(seconds)
        if status != 200:
            phase.troubles[f"/health: status {status}: {text[:100]}"] += 1
        time.sleep(0.2)


# Bad clients. Each function sends one request, or some, and gives the replies. A reply without an answer has status 0.


def send_big_body(port: int, number: int, host: str) -> list[Reply]:
    return [ask(port, body, number) for body in BIG_BODIES]


def send_long_texts(port: int, number: int, host: str) -> list[Reply]:
    stop = question(DEMO, "What happens?", stop="ab" * 50_000, max_tokens=16)
    return [ask(port, body, number) for body in (stop, question(DEMO, "why " * 10_000, max_tokens=16))]


def download_slowly(port: int, number: int, host: str) -> list[Reply]:
    return [ask(port, question(DEMO, "What happens?", video=f"{host}/slow"), number)]


def download_without_end(port: int, number: int, host: str) -> list[Reply]:
    return [ask(port, question(DEMO, "What happens?", video=f"{host}/endless"), number)]


def go_away(port: int, number: int, host: str) -> list[Reply]:
    fields = {"generation_config": json.dumps({"min_new_tokens": 1500, "max_new_tokens": 1500})}
    bodies = [question(DEMO, "Tell a long story.", stream=stream, **fields) for stream in (False, True)]
    connections = [open_request(port, body, number) for body in bodies]
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    return [Reply(0, 0.5, None, "gone", 0)] * len(bodies)


def send_at_once(port: int, number: int, host: str) -> list[Reply]:
    begin = time.perf_counter()
    connections = [open_request(port, question(DEMO, "Hi", max_tokens=8), number) for _ in range(NUM_AT_ONCE)]
    replies = []
    for connection in connections:
        status = 0
        with connection, suppress(OSError, ValueError, IndexError):
            status = int(connection.recv(4096).split()[1])
        replies.append(Reply(status, time.perf_counter() - begin, None, "", 0))
    return replies


def open_request(port: int, body: dict[str, Any], number: int) -> socket.socket:
    """A connection on which a request has been sent."""
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), 60, source_address=address(number))
    connection.sendall(head.encode() + content)
    return connection


# How many of each kind there are at the same time, all of one address.
BAD_CLIENTS: dict[str, tuple[Callable[[int, int, str], list[Reply]], int]] = {
    "big body": (send_big_body, 1),
    "long stop, long text": (send_long_texts, 1),
    "slow download": (download_slowly, 6),
    "endless download": (download_without_end, 1),
    "goes away": (go_away, 1),
    f"{NUM_AT_ONCE} at once": (send_at_once, 1),
}


def be_bad(name: str, port: int, number: int, host: str, phase: Phase) -> None:
    function, _ = BAD_CLIENTS[name]
    while phase.lasts:
        phase.bad[name] += function(port, number, host)
        time.sleep(0.1)  # a bad client is no reason to spend the machine on its own loop


class _BadHost(http.server.BaseHTTPRequestHandler):
    """Downloads: `/slow` sends a byte a second, `/endless` 20 MB a second."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        block, pause = (b"x", 1.0) if self.path == "/slow" else (bytes(1_000_000), 0.05)
        with suppress(OSError):  # the server has closed the connection
            while True:
                self.wfile.write(block)
                time.sleep(pause)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def start_bad_host() -> Iterator[str]:
    """The address of a host with bad downloads."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _BadHost) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def run_phase(port: int, seconds: float, answers: list[str], bad: Sequence[str] = (), host: str = "") -> Phase:
    """Let the good clients ask, beside bad ones.

    Args:
        answers: the right ones to `QUESTIONS`.
        bad: kinds of bad clients.
        host: of bad downloads.
    """
    phase = Phase(seconds)
    with ThreadPoolExecutor(NUM_GOOD + 1 + sum(threads for _, threads in BAD_CLIENTS.values())) as pool:
        jobs = [pool.submit(be_good, port, number, phase, answers) for number in range(NUM_GOOD)]
        jobs.append(pool.submit(watch_health, port, phase))
        for number, name in enumerate(bad, NUM_GOOD):
            jobs += [pool.submit(be_bad, name, port, number, host, phase) for _ in range(BAD_CLIENTS[name][1])]
    for job in jobs:
        job.result()
    return phase


def spread(seconds: list[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    return statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]


def find_troubles(quiet: Phase, loaded: Phase) -> list[str]:
    """What a good client noticed."""
    troubles = [f"{number} times {text}" for phase in (quiet, loaded) for text, number in phase.troubles.items()]
    before, after = (spread([reply.seconds for reply in phase.good]) for phase in (quiet, loaded))
    for name, alone, beside in zip(("median", "95th percentile"), before, after, strict=True):
        if beside > 2 * alone + 0.5:
            troubles.append(f"the {name} of the latency rose from {alone:.2f} to {beside:.2f} s")
    if max(loaded.health) > MOST_HEALTH_SECONDS:
        troubles.append(f"/health took {max(loaded.health):.2f} s")
    for name, replies in loaded.bad.items():
        if faults := sum(reply.status == 500 for reply in replies):
            troubles.append(f"{faults} requests of the client {name!r} got the status 500")
    return troubles


def print_table(quiet: Phase, loaded: Phase) -> None:
    row = "{:22} {:>8} {:>9} {:>9} {:>9} {:>9}  {}"
    print(row.format("clients", "requests", "per s", "median s", "95 % s", "slowest s", "by status"))

    def add(name: str, replies: list[Reply], seconds: float) -> None:
        times = [reply.seconds for reply in replies]
        median, p95 = spread(times) if len(times) > 1 else (times * 2)
        statuses = ", ".join(
            f"{status or 'none'}: {n}" for status, n in sorted(Counter(r.status for r in replies).items())
        )
        numbers = [f"{value:.2f}" for value in (len(replies) / seconds, median, p95, max(times))]
        print(row.format(name, len(replies), *numbers, statuses))

    add(f"{NUM_GOOD} good, alone", quiet.good, quiet.seconds)
    add(f"{NUM_GOOD} good, beside bad", loaded.good, loaded.seconds)
    for name, replies in loaded.bad.items():
        add(f"bad: {name}", replies, loaded.seconds)
    print(f"/health: slowest {max(quiet.health):.3f} s alone, {max(loaded.health):.3f} s beside the bad clients")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each of the two phases")
    parser.add_argument("--bad", nargs="+", choices=list(BAD_CLIENTS), default=list(BAD_CLIENTS), help="only these")
    given = parser.parse_args(arguments)
    limits = {"max_download_bytes": DOWNLOAD_BYTES, "download_timeout": DOWNLOAD_SECONDS}
    settings = {"num_frames": 16, "allow_private_networks": True, **limits}
    with start_bad_host() as host, start_server(DEMO, **settings) as port:
        alone = [ask(port, body) for body in QUESTIONS]
        answers = [reply.text for reply in alone]
        quiet = run_phase(port, given.seconds, answers)
        loaded = run_phase(port, given.seconds, answers, given.bad, host)
    print_table(quiet, loaded)
    troubles = find_troubles(quiet, loaded)
    for trouble in troubles:
        print(f"noticed: {trouble}")
    print("The good clients noticed the bad ones." if troubles else "No good client noticed the bad ones.")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
