"""A fresh interpreter for each program, without the wait for the imports.

Importing torch and transformers takes longer than most programs here. On Linux one process imports them, and every
program runs in a fork of that process, with modules, variables, environment and directory of its own. On other systems,
and if the driver of an accelerator does not work in forks, every program gets a new process.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

# The text of the process that waits. It answers each request, a line of JSON, with the exit status of its fork.
# Its first answer says whether it can fork: the driver of a GPU, once it is loaded, does not work in forks.
_WAITING = """\
def _wait():
    import gc, importlib, json, os, sys, types

    def prepare(request):
        for descriptor, name in enumerate((os.devnull, request["output"], request["errors"])):
            file = os.open(name, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND)
            os.dup2(file, descriptor)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        sys.argv[:] = ["-c", *request["arguments"]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        return request["program"]

    for name in sys.argv[1:]:
        try:
            importlib.import_module(name)
        except ImportError:  # the program that needs it fails with the reason
            pass
    import torch

    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    with open("/proc/self/maps") as file:
        can_fork = "libcuda.so" not in file.read() and torch.version.hip is None
    gc.freeze()  # a fork that collects garbage would copy and search all of torch
    answers.write(b"%d\\n" % can_fork)
    for line in requests:
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            return prepare(json.loads(line))
        answers.write(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def _run(program):
    import sys

    try:
        exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(status):
    # As Python ends, but for taking apart the modules one by one, which takes seconds.
    import atexit, os, sys, threading

    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


_end(_run(_wait()))
"""


class Ended(NamedTuple):
    """How a program ended, and what it wrote."""

    status: int
    output: str
    errors: str


class PreparedInterpreter:
    """Runs programs one after the other, each in an interpreter of its own.

    Args:
        environment: the variables with which the modules are imported. A program with other values of the variables
            that Python or torch reads, such as `PYTHONPATH` or `OMP_NUM_THREADS`, gets a new process.
        modules: what is imported before the programs run. Missing modules are left out.
        read: prefixes of further variables that these modules read when they are imported.
    """

    # Prefixes of the variables that Python or torch reads when it starts.
    _always_read = ("PYTHON", "OMP_", "MKL_", "TORCH", "CUDA", "LD_")

    def __init__(
        self,
        environment: Mapping[str, str],
        modules: tuple[str, ...] = ("torch", "torchvision"),
        read: tuple[str, ...] = (),
    ):
        self._environment = dict(environment)
        self._modules = modules
        self._read = (*self._always_read, *read)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._can_fork = sys.platform == "linux"

    def run(
        self,
        program: str,
        *arguments: str,
        directory: Path,
        environment: Mapping[str, str],
        time_limit: float | None = None,
    ) -> Ended:
        """Run a program as `python -c` does, with an empty input.

        Args:
            program: Python code.
            arguments: `sys.argv[1:]` of the program.
            directory: the working directory of the program.
            environment: all environment variables of the program.
            time_limit: in seconds; `None` for no limit.

        Raises:
            subprocess.TimeoutExpired: the program did not end in time, and was killed.
            RuntimeError: the process that waits has ended.
        """
        with self._lock, tempfile.TemporaryDirectory(prefix="flashvid-run-") as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            output.touch()
            errors.touch()
            if self._is_same(environment) and self._start():
                request = {
                    "program": program,
                    "arguments": arguments,
                    "directory": str(directory),
                    "environment": dict(environment),
                    "output": str(output),
                    "errors": str(errors),
                }
                status = self._ask(request, time_limit)
            else:
                with output.open("ab") as out, errors.open("ab") as err:
                    status = subprocess.run(
                        [sys.executable, "-c", program, *arguments],
                        cwd=directory,
                        env=dict(environment),
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        timeout=time_limit,
                    ).returncode
            return Ended(status, *(path.read_text(encoding="utf-8", errors="replace") for path in (output, errors)))

    def _is_same(self, environment: Mapping[str, str]) -> bool:
        """Whether the variables that Python and torch read have the values that they have in the process that waits."""

        def read(variables: Mapping[str, str]) -> dict[str, str]:
            return {name: value for name, value in variables.items() if name.startswith(self._read)}

        return read(environment) == read(self._environment)

    def _start(self) -> bool:
        """Start the process that waits, if none runs; return whether it can fork."""
        if self._can_fork and self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WAITING, *self._modules],
                cwd="/",
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that a program that hangs can be killed with all that it started
            )
            self._can_fork = self._answers.readline() == b"1\n"
            if not self._can_fork:
                self._kill()
        return self._can_fork

    def _ask(self, request: dict[str, Any], time_limit: float | None) -> int:
        """Let a fork run the request, and return its exit status."""
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._kill()

        timer = threading.Timer(time_limit, end) if time_limit else None
        try:
            if timer:
                timer.start()
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            answer = self._answers.readline()
        except BaseException:  # also `KeyboardInterrupt`, which does not reach the fork
            self._kill()
            raise
        finally:
            if timer:
                timer.cancel()
        if is_late.is_set():
            raise subprocess.TimeoutExpired("python -c", time_limit or 0)
        if not answer:
            self._kill()
            raise RuntimeError("the process that starts interpreters has ended: start again")
        return int(answer)

    @property
    def _requests(self) -> IO[bytes]:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
