"""Runs the properties of `test_fuzz.py` and `test_fuzz_server.py` in turns until the time is over.

Each turn takes new random examples:

    make fuzz MINUTES=10

A property that fails is not run again. Its example is printed, with the command that reproduces it.
"""

import argparse
import contextlib
import io
import os
import random
import sys
import time
from pathlib import Path

import pytest

from flashvid_hf.evaluation.arguments import number

FOLDER = Path(__file__).parent
FILES = ("test_fuzz.py", "test_fuzz_server.py")


class Collected:
    """A plugin that records the names of the properties that pytest finds."""

    def pytest_collection_finish(self, session):
        self.names = [item.nodeid for item in session.items]


def run(names, *options, plugin=None):
    """The exit status and the output of pytest."""
    root = FOLDER.parent
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        nodes = [str(root / name) for name in names]
        status = pytest.main(
            [*nodes, f"--rootdir={root}", "-q", "-p", "no:cacheprovider", *options], [plugin or object()]
        )
    return int(status), output.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=number(above=0), default=10)
    parser.add_argument("-k", default="", help="only properties whose name fits, as in pytest")
    args = parser.parse_args()
    os.environ["FLASHVID_FUZZ"] = "1"  # random examples instead of the same ones each time
    collected = Collected()
    status, output = run([f"tests/{name}" for name in FILES], "--collect-only", "-k", args.k, plugin=collected)
    if status:
        sys.exit(output)
    start, runs, failed = time.monotonic(), 0, []
    while (names := [name for name in collected.names if name not in failed]) and not is_over(start, args.minutes):
        for name in names:
            if is_over(start, args.minutes):
                break
            seed = random.randrange(2**32)
            status, output = run([name], f"--hypothesis-seed={seed}", "--show-capture=no", "--tb=short")
            runs += 1
            minutes = (time.monotonic() - start) / 60
            print(f"{minutes:5.1f} of {args.minutes:g} min  {'FAILED' if status else 'passed'}  {name}", flush=True)
            if status:
                failed.append(name)
                print(output)
                print(
                    f"Again with: FLASHVID_FUZZ=1 {sys.executable} -m pytest '{name}' --hypothesis-seed={seed}",
                    flush=True,
                )
    print(f"{runs} runs of {len(collected.names)} properties, {len(failed)} failed")
    sys.exit(1 if failed else 0)


def is_over(start, minutes):
    return time.monotonic() - start >= 60 * minutes


if __name__ == "__main__":
    main()
