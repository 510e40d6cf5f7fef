"""Programs in separate interpreters: what a program sees, how it ends, and that it leaves nothing to the next one."""

import subprocess

import pytest

from flashvid_hf.publishing.clean_process import shared_interpreter


def run(program, tmp_path, *arguments, time_limit=None):
    return shared_interpreter().run(program, *arguments, home=tmp_path, directory=tmp_path, time_limit=time_limit)


def test_a_program_sees_its_arguments_environment_and_directory(tmp_path, monkeypatch):
    program = "import os, sys; print(sys.argv[1:], os.environ['TZ'], os.getcwd(), sorted(globals()))"
    monkeypatch.setenv("TZ", "a value")
    ended = run(program, tmp_path, "one", "the other")
    names = "['__builtins__', '__doc__', '__loader__', '__name__', '__package__', '__spec__', 'os', 'sys']"
    assert ended == (0, f"['one', 'the other'] a value {tmp_path} {names}\n", "")


def test_what_is_imported_has_read_the_environment_of_the_program(tmp_path, monkeypatch):
    """It takes nothing from the user, and the caches of every program are its own."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_VERBOSITY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of the user")
    program = """
import os, sys
read = sorted(name for name in sys.modules if name.partition(".")[0] in ("huggingface_hub", "transformers"))
from huggingface_hub import constants
from transformers.utils.hub import HF_MODULES_CACHE
for place in (constants.HF_HOME, constants.HF_HUB_CACHE, HF_MODULES_CACHE, constants.HF_TOKEN_PATH):
    print(os.path.realpath(place))
print(bool(read), constants.HF_HUB_OFFLINE, "flashvid_hf" in sys.modules)
print([value for value in os.environ.values() if value == "of the user"])
"""
    for home in (tmp_path / "one", tmp_path / "two"):
        home.mkdir()
        ended = run(program, home)
        places = "".join(f"{home / name}\n" for name in ("", "hub", "modules", "token"))
        assert ended == (0, f"{places}True True False\n[]\n", "")


def test_a_program_leaves_nothing_to_the_next(tmp_path):
    change = "import os, sys, torch; os.environ['LEFT'] = '1'; sys.left = torch.left = 1; torch.manual_seed(5)"
    look = "import os, sys, torch; print('LEFT' in os.environ, hasattr(sys, 'left'), hasattr(torch, 'left'), "
    look += "torch.initial_seed() == 5)"
    assert run(change, tmp_path).status == 0
    assert run(look, tmp_path).output == "False False False False\n"


@pytest.mark.parametrize(
    ("program", "status", "errors"),
    [
        ("raise SystemExit('enough')", 1, "enough\n"),
        ("raise SystemExit(3)", 3, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_how_a_program_ends(program, status, errors, tmp_path):
    assert run(program, tmp_path) == (status, "", errors)


@pytest.mark.parametrize("program", ["torch.ones(1)", "os.getcwd()", "unknown"])
def test_a_program_has_no_name_that_it_does_not_import(program, tmp_path):
    ended = run(program, tmp_path)
    name = program.partition(".")[0]
    assert ended.status == 1 and f"NameError: name '{name}' is not defined" in ended.errors


def test_a_program_gets_no_input(tmp_path):
    assert "EOFError" in run("input()", tmp_path).errors


def test_exit_handlers_run_and_threads_are_waited_for(tmp_path):
    program = "import atexit, threading, time; atexit.register(print, 'last')\n"
    program += "threading.Thread(target=lambda: (time.sleep(0.2), print('first'))).start()"
    assert run(program, tmp_path).output == "first\nlast\n"


def test_a_program_that_hangs_is_killed(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        run("import time; time.sleep(600)", tmp_path, time_limit=0.5)
    assert run("print('the next one runs')", tmp_path).output == "the next one runs\n"


def test_variables_of_python_count(tmp_path, monkeypatch):
    """Python reads them when an interpreter starts, so another interpreter is started."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run("import sys; print(sys.path[1])", tmp_path)
    assert ended.output == f"{tmp_path}\n"
