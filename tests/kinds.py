"""Finds the kind of a test from what the test uses, so that nobody has to remember a marker.

A test gets the marker of a kind if it can reach one of the names of `KINDS`: in its own code, in its fixtures, or in
the functions of the test files that these call. The marker `slow` is written at the test. So is `process` where the
package starts the interpreter: a test that starts one without the marker fails.
"""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
KINDS = {
    "process": {
        "subprocess",
        "multiprocessing",
        "run_program",
        "run_engine",
        "shared_interpreter",
        "check_snippets_run",
    },
    "server": {"uvicorn", "openai", "OpenAI", "ThreadingHTTPServer"},
}


def kinds_of(item: pytest.Function) -> set[str]:
    """The markers of a test that follow from the names that it can reach."""
    definitions = item._fixtureinfo.name2fixturedefs
    functions = [item.function, *(definition.func for found in definitions.values() for definition in found)]
    names = set(_reached_names(functions))
    return {kind for kind, wanted in KINDS.items() if names & wanted}


def _reached_names(functions: list[Any]) -> Iterator[str]:
    waiting, seen = [inspect.unwrap(function) for function in functions], set()
    while waiting:
        function = waiting.pop()
        code = getattr(function, "__code__", None)
        if code is None or code in seen or not Path(code.co_filename).is_relative_to(TESTS):
            continue
        seen.add(code)
        for name in _names(code):
            yield name
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType):
                waiting.append(inspect.unwrap(value))


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes in the code of a function, and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def family_of(item: pytest.Item, families: set[str]) -> str | None:
    """The family that a test is about, from its parameters; `None` if it is not about a single family."""
    for value in getattr(getattr(item, "callspec", None), "params", {}).values():
        name = value.get("family") if isinstance(value, dict) else getattr(value, "name", value)
        if isinstance(name, str) and name in families:
            return name
    return None


@contextmanager
def watch_for_interpreters(item: pytest.Item) -> Iterator[None]:
    """Fail a test that starts an interpreter without the marker `process`, because `KINDS` did not find it."""
    if item.get_closest_marker("process"):
        yield
        return
    from flashvid_hf.publishing.prepared_interpreter import PreparedInterpreter

    run, popen, started = PreparedInterpreter.run, subprocess.Popen.__init__, []

    def note_run(interpreter: Any, program: str, *arguments: Any, **options: Any) -> Any:
        started.append("run")
        return run(interpreter, program, *arguments, **options)

    def note_popen(process: Any, command: Any, *arguments: Any, **options: Any) -> None:
        # Libraries also start other programs: git, lscpu, a compiler. These do not count.
        if not isinstance(command, (str, bytes)) and str(next(iter(command))) == sys.executable:
            started.append("Popen")
        popen(process, command, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedInterpreter, "run", note_run)
        patch.setattr(subprocess.Popen, "__init__", note_popen)
        yield
    assert not started, "the test starts an interpreter: mark it with `pytest.mark.process`, or extend tests/kinds.py"
