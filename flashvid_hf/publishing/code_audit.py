"""Rules for the code that a Hub folder brings along, read from its syntax without running it.

    for fault in find_faults(folder):
        fault.rule, fault.file, fault.line, fault.message

A name stands for what it was imported from, wherever it is used: after `from os import system as run`, `run` is
`os.system`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from transformers.dynamic_module_utils import get_relative_imports

LIBRARIES = ("torch", "transformers", "huggingface_hub")
DECODERS = ("av", "decord", "PIL")  # optional: the only modules that may be imported by a string
PACKAGE = "flashvid_hf"

# The rules that a fault can break.
IMPORTS, RELATIVE, NETWORK, EXECUTION, WRITING = "imports", "relative imports", "network", "execution", "file writing"

# Forbidden dotted names, each with everything below it; `*` stands for any characters.
_FORBIDDEN = {
    NETWORK: """
        socket socketserver ssl http urllib.request ftplib smtplib poplib imaplib telnetlib nntplib xmlrpc webbrowser
        urllib3 requests httpx aiohttp logging.handlers asyncio.open_* asyncio.start_* torch.hub torch.distributed.rpc
        huggingface_hub.*download* huggingface_hub.*upload* huggingface_hub.*session* huggingface_hub.*login*
        huggingface_hub.*http* huggingface_hub.*push* huggingface_hub.*commit* huggingface_hub.*_repo*
        huggingface_hub.*HfApi* huggingface_hub.*hf_api* huggingface_hub.*FileSystem* huggingface_hub.*Inference*
    """.split(),
    EXECUTION: """
        subprocess multiprocessing ctypes pickle marshal shelve code codeop runpy pty imp zipimport os.system os.popen
        os.exec* os.spawn* os.posix_spawn* os.fork* os.startfile asyncio.create_subprocess_* importlib.machinery
        importlib.util.spec_from_* torch.load torch.jit.load torch.ops.load_library torch.classes.load_library
        torch.utils.cpp_extension builtins.exec builtins.eval builtins.compile
    """.split(),
    WRITING: """
        shutil tempfile sqlite3 dbm zipfile tarfile fileinput mmap logging.FileHandler codecs.open torch.save
        torch.jit.save os.remove* os.unlink os.rename* os.replace os.makedirs os.mk* os.rmdir os.link os.symlink
        os.truncate os.chmod os.chown os.open os.fdopen os.write* os.pwrite*
    """.split(),
}
# Methods of `pathlib.Path` that change files.
_WRITING_METHODS = {"write_text", "write_bytes", "touch", "mkdir", "unlink", "rmdir", "symlink_to", "hardlink_to"}
# Functions that take the name of a module as a string.
_DYNAMIC_IMPORTS = ("importlib.import_module", "importlib.util.find_spec", "builtins.__import__")
# Builtins that a rule concerns; other names without an import are the module's own.
_BUILTINS = ("exec", "eval", "compile", "__import__", "open")


class Fault(NamedTuple):
    """A place that breaks a rule; `line` counts from 1, and 0 stands for the whole file."""

    rule: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


def find_faults(folder: str | Path) -> list[Fault]:
    """All faults in the `.py` files of a folder and its sub-folders, by file and line."""
    folder = Path(folder)
    faults: list[Fault] = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if path.parent != folder:
            message = "lies in a sub-folder, which the loader does not read: move it to the top of the folder"
            faults.append(Fault(RELATIVE, name, 0, message))
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            line = getattr(error, "lineno", None) or 0
            faults.append(Fault(IMPORTS, name, line, f"is no Python module: {error}. Correct it."))
            continue
        found = [*_Reader(path, name, tree).read(), *_misread_lines(path, name, tree)]
        faults += sorted(set(found), key=lambda fault: (fault.line, fault.rule, fault.message))
    return faults


def _misread_lines(path: Path, name: str, tree: ast.Module) -> Iterator[Fault]:
    """Relative imports that only the loader finds, as it searches the text, and those that it misses."""
    real = {
        "." * (node.level - 1) + node.module: node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module
    }
    found = set(get_relative_imports(path))
    text = path.read_text(encoding="utf-8")
    for module in sorted(found - real.keys()):
        match = re.search(rf"^\s*(from|import)\s+\.{re.escape(module)}(?=\s)", text, re.MULTILINE)
        line = text.count("\n", 0, match.start(1)) + 1 if match else 0
        message = f"the loader takes this text for an import of `.{module}`: reword the docstring, comment or statement"
        yield Fault(RELATIVE, name, line, message)
    for module in sorted(real.keys() - found):
        message = f"the loader does not find the import of `.{module}`: write it on a line of its own"
        yield Fault(RELATIVE, name, real[module], message)


class _Reader:
    """Reads one module: first what its names stand for, then every statement and every use of a name."""

    def __init__(self, path: Path, name: str, tree: ast.Module):
        self.path, self.name, self.tree = path, name, tree
        self.names = {builtin: f"builtins.{builtin}" for builtin in _BUILTINS}
        self.tables: set[str] = set()  # constant dictionaries of decoders
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    self.names[alias.asname or top] = alias.name if alias.asname else top
            elif isinstance(node, ast.ImportFrom) and not node.level:
                self.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        self._find_tables()

    def _find_tables(self) -> None:
        assigned = [n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)]
        changed = {_changed_name(node) for node in ast.walk(self.tree)}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                if all(_decoder(value) for value in node.value.values):
                    self.tables |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        self.tables -= {name for name in self.tables if assigned.count(name) > 1 or name in changed}

    def read(self) -> Iterator[Fault]:
        called = {id(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}
        reported: set[str] = set()  # a forbidden name is reported at its first use only
        for node in ast.walk(self.tree):
            for rule, message, pattern in self._judge(node, called):
                if pattern not in reported or pattern == "":
                    yield Fault(rule, self.name, getattr(node, "lineno", 0), message)
                reported.add(pattern)

    def _judge(self, node: ast.AST, called: set[int]) -> Iterator[tuple[str, str, str]]:
        """Rule, message and, for a forbidden name, its pattern."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from self._judge_import(alias.name)
                yield from self._judge_name(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield from self._judge_relative(node)
        elif isinstance(node, ast.ImportFrom):
            yield from self._judge_import(node.module or "")
            for alias in node.names:
                if alias.name == "*":
                    yield IMPORTS, f"`from {node.module} import *` hides what is used: name what you import", ""
                yield from self._judge_name(f"{node.module}.{alias.name}")
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            dotted = self._resolve(node)
            yield from self._judge_name(dotted)
            if dotted in _DYNAMIC_IMPORTS and id(node) not in called:
                yield IMPORTS, f"`{dotted}` under another name hides what is imported: call it by its own", ""
        elif isinstance(node, ast.Call):
            yield from self._judge_call(node)

    def _judge_import(self, module: str) -> Iterator[tuple[str, str, str]]:
        top = module.partition(".")[0]
        if top == PACKAGE:
            yield IMPORTS, f"imports `{top}`, which is not installed there: write `from .module import name`", ""
        elif top not in sys.stdlib_module_names and top not in LIBRARIES:
            allowed = ", ".join(LIBRARIES)
            yield IMPORTS, f"imports `{top}`: only the standard library, {allowed} are allowed, do without it", ""

    def _judge_relative(self, node: ast.ImportFrom) -> Iterator[tuple[str, str, str]]:
        module, names = node.module or "", ", ".join(alias.name for alias in node.names)
        if node.level > 1 or not module or "." in module or names == "*":
            written = f"from {'.' * node.level}{module} import {names}"
            yield RELATIVE, f"`{written}` is not flat: write `from .module import name`", ""
        elif not self.path.with_name(f"{module}.py").is_file():
            yield RELATIVE, f"imports `.{module}`, but the folder has no `{module}.py`: add the file", ""

    def _judge_name(self, dotted: str) -> Iterator[tuple[str, str, str]]:
        for rule, patterns in _FORBIDDEN.items():
            for pattern in patterns:
                if fnmatchcase(dotted, pattern) or fnmatchcase(dotted, f"{pattern}.*"):
                    yield rule, f"uses `{dotted.removeprefix('builtins.')}` ({rule}): do without it", pattern

    def _judge_call(self, node: ast.Call) -> Iterator[tuple[str, str, str]]:
        dotted = self._resolve(node.func)
        if dotted in _DYNAMIC_IMPORTS and not (node.args and self._names_decoder(node.args[0])):
            known = ", ".join(DECODERS)
            name = dotted.removeprefix("builtins.")
            yield IMPORTS, f"`{name}` of anything but the name of a decoder ({known}): import it by a statement", ""
        if dotted in ("builtins.getattr", "getattr") and len(node.args) > 1:
            module = self._resolve(node.args[0])
            if module and isinstance(node.args[1], ast.Constant):
                yield from self._judge_name(f"{module}.{node.args[1].value!s}")
            elif module.partition(".")[0] in ("os", "importlib", "builtins", "sys", "torch", "huggingface_hub"):
                yield EXECUTION, f"`getattr` of `{module}` with a computed name hides what is used: name it", ""
        function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if function in _WRITING_METHODS:
            yield WRITING, f"calls `.{function}` (file writing): do without it", ""
        if function == "push_to_hub":
            yield NETWORK, "calls `.push_to_hub` (network): do without it", ""
        if dotted in ("builtins.open", "io.open"):
            mode = _argument(node, 1, "mode")
            if mode is not None and (not isinstance(mode, ast.Constant) or _writes(mode)):
                yield WRITING, "opens a file in another mode than reading: read only, with a constant mode", ""
        elif function == "open" and any(_writes(argument) for argument in (*node.args[:2], _argument(node, 9, "mode"))):
            yield WRITING, "opens a file in another mode than reading: read only", ""

    def _names_decoder(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Subscript):
            return isinstance(node.value, ast.Name) and node.value.id in self.tables
        return _decoder(node)

    def _resolve(self, node: ast.AST) -> str:
        """The dotted name that an expression stands for; empty if it is unknown."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, "getattr" if node.id == "getattr" else "")
        if isinstance(node, ast.Attribute):
            below = self._resolve(node.value)
            return f"{below}.{node.attr}" if below else ""
        return ""


def _changed_name(node: ast.AST) -> str:
    """The variable whose content this may change, by an item or a method; empty for none."""
    changes = isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
    changes |= isinstance(node, ast.Attribute) and node.attr not in ("get", "items", "keys", "values")
    value = getattr(node, "value", None)
    return value.id if changes and isinstance(value, ast.Name) else ""


def _decoder(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and str(node.value).partition(".")[0] in DECODERS


def _argument(call: ast.Call, place: int, name: str) -> ast.expr | None:
    """An argument of a call by place or by name; `None` if it is not given."""
    if len(call.args) > place:
        return call.args[place]
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _writes(mode: ast.expr | None) -> bool:
    """Whether this is a constant mode of `open` that changes the file."""
    value = mode.value if isinstance(mode, ast.Constant) else None
    return isinstance(value, str) and bool(re.fullmatch(r"[rwaxbt+]{1,4}", value)) and bool(set(value) & set("wax+"))
