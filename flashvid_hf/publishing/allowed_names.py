"""The names that code may use which differs from what the package generates: an allow-list.

    allowed = allowed_names()
    allowed.permits("torch.nn.functional.pad")   # a name from a library, with all its parts
    allowed.permits_attribute("shape")           # an attribute of an object that the audit does not know

The list has every name that the generated code itself uses, operations on tensors, and parts of the standard library
that only compute. It is data: nothing here runs the code under audit.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from ..families import FAMILIES
from .published_code import published_files

# Modules of the standard library that compute and do nothing else. Their public names are allowed, except those below.
_PURE = (
    *("abc", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "dataclasses", "enum"),
    *("fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "os.path", "random", "re"),
    *("statistics", "textwrap", "time", "typing", "warnings"),
)
# They reach attributes by text, evaluate text, or make classes from text.
_REFLECTIVE = (
    *("operator.attrgetter", "operator.methodcaller", "typing.get_type_hints", "typing.ForwardRef"),
    *("dataclasses.make_dataclass",),
)
# Patterns of further names, part by part.
_PATTERNS = (
    *("os.PathLike", "os.fspath", "os.SEEK_*", "os.sep"),
    *("torch.Tensor", "torch.Size", "torch.Generator", "torch.device", "torch.dtype", "torch.finfo", "torch.iinfo"),
    *("torch.no_grad", "torch.inference_mode", "torch.enable_grad", "torch.autocast", "torch.compile"),
    *("torch.manual_seed", "torch.*Tensor", "torch.nn.[A-Z]*", "torch.nn.functional.[a-z]*", "torch.nn.init.[a-z]*"),
    *("transformers.[A-Z]*", "transformers.models.*.*_*.[A-Z]*"),
)
# What the python blocks of a card may use besides.
_CARD_PATTERNS = (
    "flashvid_hf.[a-zA-Z]*",
    "transformers.pipeline",
    "transformers.set_seed",
    "torch.cuda.is_available",
    "av.open",
    "PIL.Image.open",
)

_BUILTINS = frozenset(
    """
    Exception IndexError KeyError NotImplementedError OSError RuntimeError TypeError ValueError AttributeError
    ImportError ArithmeticError AssertionError StopIteration Ellipsis NotImplemented SystemExit DeprecationWarning
    UserWarning FutureWarning __name__ abs all any bool bytearray bytes callable chr classmethod complex dict divmod
    enumerate filter float format frozenset hash hex id int isinstance issubclass iter len list map max memoryview min
    next object oct open ord pow print property range repr reversed round set slice sorted staticmethod str sum super
    tuple type zip
    """.split()
)
# Builtins that reach attributes by text. A call is allowed with a constant name, or as the generated code has it.
BY_TEXT = ("getattr", "hasattr", "setattr", "delattr", "vars")
# Attributes that lead from a function, generator or traceback to its variables and code.
_FRAMES = re.compile(r"(f|gi|cr|ag|tb|co|func)_\w+")


@dataclass(frozen=True)
class AllowedNames:
    """The allow-list.

    Args:
        dotted: names from libraries.
        attributes: attributes of objects that the audit does not know.
        expressions: calls with names by text and uses of `sys.modules`, as the generated code has them.
        patterns: patterns of further dotted names; `*` stands for any characters of one part.
    """

    dotted: frozenset[str]
    attributes: frozenset[str]
    expressions: frozenset[str]
    patterns: tuple[str, ...]

    def permits(self, dotted: str) -> bool:
        """Whether a name is allowed. Parts behind an allowed name are attributes of what it stands for."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            if self._knows(".".join(parts[:length])):
                return all(map(self.permits_attribute, parts[length:]))
        return False

    def permits_import(self, dotted: str) -> bool:
        """Whether a name may be imported: an allowed name, or a module that has some."""
        if dotted == "sys" or self.permits(dotted):  # `sys.modules` is judged where it is used
            return True
        return any(name.startswith(f"{dotted}.") for name in (*self.dotted, *self.patterns))

    def permits_attribute(self, name: str) -> bool:
        return name in self.attributes

    def with_attributes(self, names: Iterable[str]) -> "AllowedNames":
        """This list, and attributes that the code under audit defines itself."""
        own = {name for name in names if not name.startswith("__") and not _FRAMES.fullmatch(name)}
        return AllowedNames(self.dotted, self.attributes | own, self.expressions, self.patterns)

    def for_card(self) -> "AllowedNames":
        """The list for the python blocks of a card."""
        attributes = self.attributes | {name for name in dir(FAMILIES[0]) if not name.startswith("_")}
        return AllowedNames(self.dotted, attributes, self.expressions, (*self.patterns, *_CARD_PATTERNS))

    def _knows(self, dotted: str) -> bool:
        return dotted in self.dotted or any(_matches(dotted, pattern) for pattern in self.patterns)


def permits_builtin(name: str) -> bool:
    """Whether a name that the code does not define may be used, if it is one of Python's own."""
    is_pythons = hasattr(builtins, name) or (name.startswith("__") and name.endswith("__"))
    return not is_pythons or name in _BUILTINS or name in BY_TEXT


@cache
def allowed_names() -> AllowedNames:
    """The allow-list for the code of a folder."""
    dotted, attributes, expressions = set(_library_names()), set(_data_attributes()), set()
    for text in {text for family in FAMILIES for text in published_files(family).values()}:
        tree = ast.parse(text)
        names = imported_names(tree)
        dotted |= {found for _, found in find_chains(tree, names)} - {"sys.modules"}
        dotted |= {name for name in names.values() if "." in name and not _is_module(name)}
        attributes |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        attributes |= set(find_defined(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_TEXT:
                attributes |= {part.value for part in node.args[1:2] if isinstance(part, ast.Constant)}
        expressions |= {ast.unparse(node) for node in find_by_text(tree, names)}
    return AllowedNames(frozenset(dotted), frozenset(attributes), frozenset(expressions), _PATTERNS)


def imported_names(tree: ast.AST) -> dict[str, str]:
    """What the imported names of a module stand for, as dotted names."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def find_chains(tree: ast.AST, names: Mapping[str, str]) -> Iterator[tuple[ast.AST, str]]:
    """Every use of an imported name, with all attributes that follow it: the node, and the dotted name."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in inner:
            if dotted := resolve(node, names):
                yield node, dotted


def resolve(node: ast.AST, names: Mapping[str, str]) -> str:
    """The dotted name that an expression stands for; empty if it is unknown."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        below = resolve(node.value, names)
        return f"{below}.{node.attr}" if below else ""
    return ""


def find_defined(tree: ast.AST) -> Iterator[str]:
    """The names and attributes that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def find_by_text(tree: ast.AST, names: Mapping[str, str]) -> Iterator[ast.AST]:
    """Calls that reach an attribute by a computed name, and items of `sys.modules`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_TEXT:
            if len(node.args) < 2 or not isinstance(node.args[1], ast.Constant):
                yield node
        elif isinstance(node, ast.Subscript) and resolve(node.value, names) == "sys.modules":
            yield node


def _library_names() -> Iterator[str]:
    for module in _PURE:
        found = import_module(module)
        public = getattr(found, "__all__", None) or [name for name in dir(found) if not name.startswith("_")]
        names = [f"{module}.{name}" for name in public if not isinstance(getattr(found, name, None), ModuleType)]
        yield from (name for name in names if name not in _REFLECTIVE)
    operations = [*dir(torch._C._VariableFunctions), *torch.functional.__all__]
    yield from (f"torch.{name}" for name in operations if not name.startswith("_") and name != "from_file")
    kinds = (torch.dtype, torch.layout, torch.memory_format)
    yield from (f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, kinds))


def _data_attributes() -> Iterator[str]:
    """Public attributes of tensors, modules and Python's containers, numbers and texts."""
    kinds = (torch.Tensor, torch.nn.Module, torch.dtype, str, bytes, dict, list, set, tuple, int, float, property)
    for kind in kinds:
        yield from (name for name in dir(kind) if not name.startswith("_"))


def _is_module(dotted: str) -> bool:
    """Whether a dotted name from the generated code is a module, whose names have to be judged one by one."""
    above, _, name = dotted.rpartition(".")
    return dotted in sys.modules or isinstance(getattr(import_module(above), name, None), ModuleType)


def _matches(dotted: str, pattern: str) -> bool:
    parts, patterns = dotted.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
