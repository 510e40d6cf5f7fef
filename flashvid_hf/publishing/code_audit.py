"""Rules for the code that a Hub folder brings along, read from its syntax without running it.

    for fault in find_faults(folder):
        fault.rule, fault.file, fault.line, fault.message

A name stands for what it was imported from, wherever it is used: after `from os import system as run`, `run` is
`os.system`. Beside the rules there is an allow-list of names, see `allowed_names`: it catches what no rule foresees.
Code that is exactly what the package generates needs no rules.
"""

import ast
import io
import re
import sys
import tokenize
import unicodedata
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from transformers.dynamic_module_utils import get_relative_imports

from .allowed_names import (
    BY_TEXT,
    allowed_names,
    find_by_text,
    find_chains,
    find_defined,
    imported_names,
    permits_builtin,
    resolve,
)
from .remote_code import find_remote_code

LIBRARIES = ("torch", "transformers", "huggingface_hub")
DECODERS = ("av", "decord", "PIL")  # optional: the only modules that may be imported by a string
PACKAGE = "flashvid_hf"

# The rules that a fault can break.
IMPORTS, RELATIVE, NETWORK, EXECUTION, WRITING = "imports", "relative imports", "network", "execution", "file writing"
NAMES, TEXT = "names", "text"

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


def find_faults(folder: str | Path, generated: Mapping[str, str] | None = None) -> list[Fault]:
    """All faults in the `.py` files of a folder and its sub-folders, by file and line.

    Args:
        folder: the folder.
        generated: the text of files by name that need no rules; a file with exactly this text has no faults.
    """
    folder = Path(folder)
    faults: list[Fault] = []
    trees: dict[Path, ast.Module] = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if path.parent != folder:
            message = "lies in a sub-folder, which the loader does not read: move it to the top of the folder"
            faults.append(Fault(RELATIVE, name, 0, message))
        code = path.read_bytes()
        if generated and generated.get(name, "").encode() == code:
            continue
        if found := [Fault(TEXT, name, line, message) for line, message in _find_odd_text(code)]:
            faults += found
            continue
        try:
            trees[path] = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None) or 0
            faults.append(Fault(IMPORTS, name, line, f"is no Python module: {error}. Correct it."))
    own = {defined for tree in trees.values() for defined in find_defined(tree)}
    for path, tree in trees.items():
        name = path.relative_to(folder).as_posix()
        faults += _sorted([*_Reader(path, name, tree, own).read(), *_misread_lines(path, name, tree)])
    return sorted(faults, key=lambda fault: fault.file)


def find_snippet_faults(name: str, code: str) -> list[Fault]:
    """All faults in a python block of a card. It may also import the package and the decoders."""
    if found := [Fault(TEXT, name, line, message) for line, message in _find_odd_text(code.encode())]:
        return found
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # it does not run; another check reports it
    return _sorted(_Reader(Path(name), name, tree, set(find_defined(tree)), is_card=True).read())


def _sorted(faults: Iterator[Fault] | list[Fault]) -> list[Fault]:
    """The faults in order. A name that the allow-list lacks is a fault only where no rule says more."""
    found = set(faults)
    lines = {fault.line for fault in found if fault.rule != NAMES}
    kept = (fault for fault in found if fault.rule != NAMES or fault.line not in lines)
    return sorted(kept, key=lambda fault: (fault.line, fault.rule, fault.message))


def _find_odd_text(code: bytes) -> Iterator[tuple[int, str]]:
    """Lines whose text is not what it seems: another encoding, unseen characters, names of other scripts."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(code).readline)
        if encoding != "utf-8":
            yield 1, f"its encoding is declared as {encoding!r}: write it in UTF-8, without a declaration or a mark"
            return
        text = code.decode("utf-8")
    except (SyntaxError, UnicodeDecodeError) as error:
        yield 1, f"is not written in UTF-8 ({error}): write it so, without a declaration"
        return
    for number, line in enumerate(text.split("\n"), 1):
        for character in line.removesuffix("\r"):
            if character != "\t" and unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp"):
                yield number, f"has the character U+{ord(character):04X}, which cannot be seen: remove it"
                return
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and not token.string.isascii():
                yield (
                    token.start[0],
                    f"the name {ascii(token.string)} has letters that look like others: use A-Z and a-z",
                )
                return
    except (SyntaxError, tokenize.TokenError):
        return  # no Python, which is reported elsewhere


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

    def __init__(self, path: Path, name: str, tree: ast.Module, own: set[str], is_card: bool = False):
        self.path, self.name, self.tree, self.is_card = path, name, tree, is_card
        self.allowed = allowed_names().with_attributes(own)
        if is_card:
            self.allowed = self.allowed.for_card()
        self.imported = {**imported_names(tree), **_imported_again(path, tree)}
        self.names = {builtin: f"builtins.{builtin}" for builtin in _BUILTINS} | {"getattr": "getattr"} | self.imported
        self.tables: set[str] = set()  # constant dictionaries of decoders
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
        for node, message in find_remote_code(self.tree, self.is_card):
            yield Fault(EXECUTION, self.name, getattr(node, "lineno", 0), message)
        texts = [*_annotation_trees(self.tree)]
        for tree in (self.tree, *texts):
            for node, message in self._judge_names(tree):
                yield Fault(NAMES, self.name, getattr(node, "lineno", 0), message)

    def _judge_names(self, tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        """What the allow-list of names does not have."""
        step = "do without it, or export the folder again"
        defined = {*find_defined(self.tree), *_bound_names(self.tree)}
        chains = {id(node): dotted for node, dotted in find_chains(tree, self.imported)}
        by_text = {id(node): ast.unparse(node) for node in find_by_text(tree, self.imported)}
        called, known = set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called.add(id(node.func))
            if by_text.get(id(node)) in self.allowed.expressions and isinstance(node, ast.Subscript):
                known.add(id(node.value))
        for node in ast.walk(tree):
            if id(node) in by_text and by_text[id(node)] not in self.allowed.expressions:
                yield node, f"`{by_text[id(node)]}` takes what it uses from a computed name: name it"
            if id(node) in chains and id(node) not in known and not self._permits_chain(node, chains[id(node)]):
                yield node, f"uses `{chains[id(node)]}`, which is not among the allowed names: {step}"
            elif isinstance(node, ast.Attribute) and not resolve(node, self.imported):
                if not self.allowed.permits_attribute(node.attr):
                    yield node, f"uses the attribute `{node.attr}`, which is not among the allowed names: {step}"
            elif isinstance(node, ast.Name) and node.id not in defined and not permits_builtin(node.id):
                yield node, f"uses `{node.id}`, which is not among the allowed names: {step}"
            elif isinstance(node, ast.Name) and node.id in BY_TEXT and id(node) not in called:
                yield node, f"`{node.id}` under another name hides what is used: call it by its own"
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_TEXT:
                given = node.args[1] if len(node.args) > 1 else None
                if isinstance(given, ast.Constant) and not self.allowed.permits_attribute(str(given.value)):
                    yield node, f"uses the attribute `{given.value!r}`, which is not among the allowed names: {step}"
            elif isinstance(node, ast.MatchClass):
                for name in node.kwd_attrs:
                    if not self.allowed.permits_attribute(name):
                        yield node, f"uses the attribute `{name}`, which is not among the allowed names: {step}"
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    dotted = f"{node.module}.{alias.name}"
                    if alias.name != "*" and not self.allowed.permits_import(dotted):
                        yield node, f"imports `{dotted}`, which is not among the allowed names: {step}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if not self.allowed.permits_import(alias.name) and not self._may_import(alias.name):
                        yield node, f"imports `{alias.name}`, which is not among the allowed names: {step}"

    def _permits_chain(self, node: ast.AST, dotted: str) -> bool:
        is_loaded = isinstance(getattr(node, "ctx", None), ast.Load)
        if isinstance(node, ast.Name) and not is_loaded:
            return True  # another value under the name of an import
        return self.allowed.permits(dotted) or (is_loaded and any(self._judge_name(dotted)))  # a rule reports it

    def _may_import(self, module: str) -> bool:
        """Whether a block of a card may import a module that code may not."""
        return self.is_card and module.partition(".")[0] in (PACKAGE, *DECODERS)

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
            dotted = resolve(node, self.names)
            yield from self._judge_name(dotted)
            if dotted in _DYNAMIC_IMPORTS and id(node) not in called:
                yield IMPORTS, f"`{dotted}` under another name hides what is imported: call it by its own", ""
        elif isinstance(node, ast.Call):
            yield from self._judge_call(node)

    def _judge_import(self, module: str) -> Iterator[tuple[str, str, str]]:
        top = module.partition(".")[0]
        if self._may_import(module):
            return
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
        dotted = resolve(node.func, self.names)
        if dotted in _DYNAMIC_IMPORTS and not (node.args and self._names_decoder(node.args[0])):
            known = ", ".join(DECODERS)
            name = dotted.removeprefix("builtins.")
            yield IMPORTS, f"`{name}` of anything but the name of a decoder ({known}): import it by a statement", ""
        if dotted in ("builtins.getattr", "getattr") and len(node.args) > 1:
            module = resolve(node.args[0], self.names)
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


def _imported_again(path: Path, tree: ast.Module) -> dict[str, str]:
    """Names that are imported from another file of the folder, which has imported them itself."""
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and (node.module or "").isidentifier():
            try:
                theirs = imported_names(ast.parse(path.with_name(f"{node.module}.py").read_bytes()))
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                continue  # reported elsewhere
            names |= {alias.asname or alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
    return names


def _annotation_trees(tree: ast.Module) -> Iterator[ast.AST]:
    """The annotations that are written as texts, which some libraries evaluate."""
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for below in ast.walk(annotation) if isinstance(annotation, ast.AST) else ():
                if isinstance(below, ast.Constant) and isinstance(below.value, str):
                    try:
                        found = ast.parse(below.value.strip(), mode="eval")
                    except (SyntaxError, ValueError, RecursionError, MemoryError):
                        continue
                    for inner in ast.walk(found):
                        if hasattr(inner, "lineno"):
                            inner.lineno = below.lineno
                    yield found


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """The names that imports and `except ... as` bind."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


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
