"""Load test of `flashvid-hf serve`: 16 good clients, alone and beside one bad client of each kind in turn.

    python scripts/benchmarks/load_serving.py                      the trained demo, two minutes on two cores
    python scripts/benchmarks/load_serving.py --bad "big body"     beside this kind only

A good client asks about a video or in text, and asks again three seconds after its answer. What the bad clients do
stands beside each of them in `BAD_CLIENTS`. The good clients are alone for a while before each of them comes, so that a
slow while of the machine meets both. At the end all bad clients come together, which is shown but not judged: so many
work on the server's own machine that they slow down everything on it.

The good clients notice a bad one, and the exit status is 1, if one of these is false:

- every good request gets the status 200 and the answer that it gets from the idle server;
- the median of the latencies of all good requests, and their 95th percentile, are at most twice those just before the
  bad client came, plus half a second, because all clients work on the server's own machine;
- `/health` always answers with 200, in less than a second;
- no client gets the status 500.

The second is not asked of "400 at once": this client gets answers to its questions, one turn for each turn of another
client, and answers take the machine's time. How long the others wait is shown.

The results are those numbers for every kind, and the statuses that the bad clients got; 0 is a connection that ended
without an answer. Clients have addresses of their own on Linux only. Elsewhere the server takes all for one client, and
is not fair to each of them.
"""

import argparse
import functools
import http.server
import itertools
import json
import re
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

from benchmark_results import REPOSITORY, command, default_device, write_json
from serving_clients import CHAT, CLIP, DEMO, Reply, address, ask, get, question, start_server

from flashvid_hf.evaluation.environment import environment

QUESTIONS = [
    question(DEMO, "Which shape appears first?", video=str(CLIP), max_tokens=16),
    question(DEMO, "What flashes up?", video=str(CLIP), max_tokens=16, stream=True),
    question(DEMO, "How many shapes are there?", max_tokens=16),
]
NUM_GOOD = 16
PAUSE = 3.0  # seconds between an answer and the next question of a good client
MOST_HEALTH_SECONDS = 1.0
DOWNLOAD_SECONDS, DOWNLOAD_BYTES = 4.0, 50_000_000  # the server's limits here, so that the test meets them in time
IDLE_SECONDS = 30.0  # in which the server ends the work of a bad client that has gone


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
    for place in itertools.count(number):
        if not phase.lasts:
            return
        place %= len(QUESTIONS)
        reply = ask(port, QUESTIONS[place], number)
        phase.good.append(reply)
        if reply.status != 200:
            phase.troubles[f"status {reply.status}: {reply.text[:100]}"] += 1
        elif reply.text != answers[place]:
            phase.troubles[f"the answer {reply.text!r:.100} in the place of {answers[place]!r:.100}"] += 1
        time.sleep(max(0.0, min(PAUSE, phase.end - time.perf_counter())))


def watch_health(port: int, phase: Phase) -> None:
    while phase.lasts:
        status, text, seconds = get(port, "/health")
        phase.health.append(seconds)
        if status != 200:
            phase.troubles[f"/health: status {status}: {text[:100]}"] += 1
        time.sleep(0.2)


# Bad clients. Each function sends one request, or some, and gives the replies. A reply without an answer has status 0.


def send_big_bodies(port: int, number: int, host: str) -> list[Reply]:
    bodies = (b'{"messages": [' + b"1," * 25_000_000 + b"1]}", b'{"model": "' + b"x" * 100_000_000 + b'"}')
    text = b'{"messages": [{"role": "user", "content": "' + b"x" * 50_000_000 + b'"}]}'
    return [ask(port, body, number) for body in (*bodies, text)]


def send_deep_json(port: int, number: int, host: str) -> list[Reply]:
    return [ask(port, body, number) for body in (b"[" * 20_000_000, b'{"a":' * 30_000 + b"1" + b"}" * 30_000)]


def send_long_texts(port: int, number: int, host: str) -> list[Reply]:
    stop = question(DEMO, "What happens?", stop="ab" * 50_000, max_tokens=16)
    return [ask(port, body, number) for body in (stop, question(DEMO, "x" * 40_000, max_tokens=16))]


def download_slowly(port: int, number: int, host: str) -> list[Reply]:
    return [ask(port, question(DEMO, "What happens?", video=f"{host}/slow"), number)]


def download_without_end(port: int, number: int, host: str) -> list[Reply]:
    return [ask(port, question(DEMO, "What happens?", video=f"{host}/endless"), number)]


def go_away(port: int, number: int, host: str) -> list[Reply]:
    fields = {"generation_config": json.dumps({"min_new_tokens": 1500, "max_new_tokens": 1500})}
    bodies = [question(DEMO, "Tell a long story.", stream=stream, **fields) for stream in (False, True)]
    return leave(number, [open_request(port, body, number) for body in bodies], 0.5)


def send_slowly(port: int, number: int, host: str) -> list[Reply]:
    connections = [open_request(port, {}, number, missing=10_000_000) for _ in range(100)]
    for _ in range(4):
        time.sleep(0.5)
        for connection in connections:
            with suppress(OSError):
                connection.sendall(b" ")
    return leave(number, connections)


def send_nothing(port: int, number: int, host: str) -> list[Reply]:
    make = functools.partial(socket.create_connection, ("127.0.0.1", port), 60, source_address=address(number))
    return leave(number, [make() for _ in range(NUM_IDLE)], 2.0)


def take_nothing(port: int, number: int, host: str) -> list[Reply]:
    body = question(DEMO, "Tell a long story.", stream=True, max_tokens=100)
    return leave(number, [open_request(port, body, number) for _ in range(20)], 3.0)


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


def open_request(port: int, body: dict[str, Any], number: int, missing: int = 0) -> socket.socket:
    """A connection on which a request has been sent, but for some bytes of its body."""
    content = json.dumps(body).encode()
    length = len(content) + missing
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), 60, source_address=address(number))
    connection.sendall(head.encode() + content)
    return connection


def leave(number: int, connections: list[socket.socket], seconds: float = 0.0) -> list[Reply]:
    """Close connections after some seconds, without having read anything."""
    time.sleep(seconds)
    for connection in connections:
        connection.close()
    return [Reply(0, seconds, None, "left", 0)] * len(connections)


NUM_AT_ONCE, NUM_IDLE = 400, 1000
BUSY = "400 at once"  # a client that is no worse than busy
# How many of each kind there are at the same time, all of one address.
BAD_CLIENTS: dict[str, tuple[Callable[[int, int, str], list[Reply]], int]] = {
    "big body": (send_big_bodies, 1),  # 100 MB, 50 MB of values, 50 MB of text
    "deep JSON": (send_deep_json, 1),  # 20 million brackets
    "long texts": (send_long_texts, 1),  # a stop string of 100 KB, a prompt longer than the model's context
    "slow download": (download_slowly, 6),  # the address of a file that comes with a byte a second
    "endless download": (download_without_end, 1),
    "goes away": (go_away, 1),  # after half a second, from an answer of 1500 tokens
    "slow body": (send_slowly, 1),  # 100 bodies of 10 MB that come with two bytes a second
    "no request": (send_nothing, 1),  # 1000 connections
    "takes nothing": (take_nothing, 1),  # of 20 streams
    BUSY: (send_at_once, 1),
}


def be_bad(name: str, port: int, number: int, host: str, phase: Phase) -> None:
    function, _ = BAD_CLIENTS[name]
    while phase.lasts:
        with suppress(OSError):  # the server has closed a connection
            phase.bad[name] += function(port, number, host)
        time.sleep(0.5)  # a bad client is no reason to spend the machine on its own loop


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
    end = time.monotonic() + IDLE_SECONDS
    while any(map(float, re.findall(r"^flashvid_num_requests_\w+ (.*)$", get(port, "/metrics")[1], re.MULTILINE))):
        if time.monotonic() > end:
            phase.troubles["the server still works for clients that have gone"] += 1
            break
        time.sleep(0.1)
    return phase


def summary(phase: Phase) -> dict[str, Any]:
    """The numbers of a phase, in seconds."""
    latency = [reply.seconds for reply in phase.good]
    return {
        "requests": len(latency),
        "answers_per_second": len(latency) / phase.seconds,
        "latency": {
            "median": statistics.median(latency),
            "p95": statistics.quantiles(latency, n=20, method="inclusive")[-1],
            "max": max(latency),
        },
        "health_max": max(phase.health),
        "bad_statuses": {
            name: dict(sorted(Counter(r.status for r in all_).items())) for name, all_ in phase.bad.items()
        },
    }


def find_troubles(quiet: dict[str, Any], loaded: dict[str, Any], faults: Counter[str]) -> list[str]:
    """What a good client noticed."""
    troubles = [f"{number} times {text}" for text, number in faults.items()]
    judged = () if BUSY in loaded["bad_statuses"] else ("median", "p95")
    for name in judged:
        alone, beside = quiet["latency"][name], loaded["latency"][name]
        if beside > 2 * alone + 0.5:
            troubles.append(f"the {name} of the latency rose from {alone:.2f} to {beside:.2f} s")
    if loaded["health_max"] > MOST_HEALTH_SECONDS:
        troubles.append(f"/health took {loaded['health_max']:.2f} s")
    for name, statuses in loaded["bad_statuses"].items():
        if 500 in statuses:
            troubles.append(f"{statuses[500]} requests of the client {name!r} got the status 500")
    return troubles


ROW = "{:18} {:>8} {:>6} {:>8} {:>6} {:>6} {:>8}  {}"


def print_row(name: str, numbers: dict[str, Any]) -> None:
    latency = numbers["latency"]
    values = (numbers["answers_per_second"], latency["median"], latency["p95"], latency["max"], numbers["health_max"])
    of_bad: Counter[int] = sum(map(Counter, numbers["bad_statuses"].values()), Counter())
    statuses = ", ".join(f"{number} x {status or 'none'}" for status, number in sorted(of_bad.items()))
    print(ROW.format(name, numbers["requests"], *(f"{value:.2f}" for value in values), statuses), flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="alone, and beside each kind of bad client")
    parser.add_argument("--bad", nargs="+", choices=list(BAD_CLIENTS), default=list(BAD_CLIENTS), help="only these")
    parser.add_argument("--output", default=str(REPOSITORY / "benchmarks" / f"load-serving-{default_device()}.json"))
    given = parser.parse_args(arguments)
    settings = {
        "num_frames": 16,
        "allowed_local_media_path": str(CLIP.parent),
        "allow_private_networks": True,
        "max_download_bytes": DOWNLOAD_BYTES,
        "download_timeout": DOWNLOAD_SECONDS,
    }
    with start_bad_host() as host, start_server(DEMO, **settings) as port:
        answers = [ask(port, body).text for body in QUESTIONS]
        print(ROW.format("16 good beside", "requests", "per s", "median s", "95 % s", "max s", "health s", "bad got"))
        kinds, troubles = {}, {}
        for name in given.bad:
            quiet, phase = (run_phase(port, given.seconds, answers, bad, host) for bad in ([], [name]))
            kinds[name] = {"alone": summary(quiet), "beside": summary(phase)}
            print_row("none", kinds[name]["alone"])
            print_row(name, kinds[name]["beside"])
            troubles[name] = find_troubles(kinds[name]["alone"], kinds[name]["beside"], quiet.troubles + phase.troubles)
        together = summary(run_phase(port, given.seconds, answers, given.bad, host))
        print_row("all of these", together)
    troubles = {name: found for name, found in troubles.items() if found}
    for name, found in troubles.items():
        print(f"noticed beside {name!r}: {'; '.join(found)}")
    print("The good clients noticed bad ones." if troubles else "No good client noticed a bad one.")
    results = {
        "command": command("load_serving.py", arguments),
        "environment": environment(default_device()),
        "model": DEMO.name,
        "kinds": kinds,
        "together": together,
        "noticed": troubles,
    }
    write_json(given.output, results)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
