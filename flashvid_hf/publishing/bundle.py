"""Join the modules of the package into a few flat files, because transformers loads code from one flat folder only.

    files = bundle(package, entries, places, origin="flashvid_hf 0.1.0")  # text by file name

The code of a module is copied unchanged, with its comments. Only imports change: those of libraries move to the head of
the file, those of modules in the same file disappear, and the others become `from .file import name`. Nothing is
renamed. If that would change the meaning of the code, the generator raises a `BundleError`.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

WIDTH = 120  # of a line, as in pyproject.toml
# The one statement that several modules of a file may have in common.
LOGGER = "logger = logging.get_logger(__name__)"
# The line in the head of a file that names what the file was generated from.
ORIGIN_LINE = r"(?m)^Generated from (.+): do not edit\."
# What transformers takes for a relative import, even in a docstring: see `get_relative_imports` of its loader.
_LOADER_PATTERN = re.compile(r"^\s*(?:import\s+\.\S+\s*$|from\s+\.\S+\s+import)", re.MULTILINE)


class BundleError(ValueError):
    """The modules cannot be joined without a change of meaning. The message names the place and the next step."""


class Place(NamedTuple):
    """One published file.

    Args:
        summary: first line of its docstring.
        modules: patterns of the modules that it holds, such as "compression.*". Their order is the order of the
            sections, as far as the imports allow.
    """

    summary: str
    modules: tuple[str, ...]


class ImportedName(NamedTuple):
    """A name that a module imports.

    Args:
        module: where it comes from. A module of the package has no leading "flashvid_hf.".
        name: what is imported from there; empty for `import module`.
        bound: the name that the importing module uses.
        is_own: whether `module` belongs to the package.
    """

    module: str
    name: str
    bound: str
    is_own: bool


@dataclass
class Module:
    """One module of the package, taken apart."""

    name: str
    body: str
    docstring: str = ""
    imports: list[ImportedName] = field(default_factory=list)
    type_imports: list[ImportedName] = field(default_factory=list)  # under `if TYPE_CHECKING:`
    defined: set[str] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)  # `__all__`
    has_logger: bool = False


def bundle(package: Path, entries: Iterable[str], places: Mapping[str, Place], origin: str) -> dict[str, str]:
    """The published files of some modules, and of all modules that they import.

    Args:
        package: the folder of the package.
        entries: modules as dotted names without the package, such as "models.qwen.modeling_flashvid_qwen3_vl".
        places: the files, by name without ".py". A module goes into the first file with a matching pattern.
        origin: name and version of the package, which the head of every file states.

    Returns:
        The text of every file, by its name. The same package gives the same text.

    Raises:
        BundleError: the modules cannot be joined as they are.
    """
    modules: dict[str, Module] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name not in modules:
            modules[name] = read_module(package, name)
            waiting += [found.module for found in modules[name].imports if found.is_own]
    place_of = {name: _find_place(name, places) for name in modules}

    files: dict[str, list[str]] = {}
    for name in sorted(modules, key=lambda name: (place_of[name], name)):
        files.setdefault(place_of[name][0], []).append(name)
    _sort("files", {file: {place_of[other][0] for other in _needs(modules, names)} for file, names in files.items()})
    file_of = {name: file for name, (file, _) in place_of.items()}
    texts = {}
    for file in sorted(files):
        order = _sort("modules", {name: _needs(modules, [name]) & set(files[file]) for name in files[file]})
        texts[f"{file}.py"] = _Writer(file, file_of).write(places[file], [modules[name] for name in order], origin)
    return texts


@cache
def read_module(package: Path, name: str) -> Module:
    """Take a module apart.

    Raises:
        BundleError: there is no such module, or it has an import in a form that cannot be joined.
    """
    path = package.joinpath(*name.split(".")).with_suffix(".py")
    if not path.is_file():
        raise BundleError(f"`{name}` is no module of {package.name}: import names from the modules that define them.")
    text = path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    module = Module(name, "", ast.get_docstring(tree, clean=False) or "")
    removed: set[int] = set()
    top_level: set[ast.stmt] = set()
    for place, node in enumerate(tree.body):
        statements, found = [node], module.imports
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            statements, found = node.body, module.type_imports
        if all(isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in statements):
            if any("#" in line for line in lines[node.lineno - 1 : node.end_lineno]):
                raise BundleError(f"{path}:{node.lineno}: the comment on this import would be lost: move it.")
            top_level.update(statements)
            names = [name for statement in statements for name in _read_import(path, package, statement)]
            found += [name for name in names if name.bound != "TYPE_CHECKING"]  # its `if` block is left out too
        elif place == 0 and module.docstring:
            pass
        elif ast.unparse(node) == LOGGER:
            module.has_logger = True
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            module.exported = set(ast.literal_eval(node.value))
        else:
            module.defined.update(_defined_names(node))
            continue
        removed.update(range(node.lineno - 1, node.end_lineno or node.lineno))
    for below in ast.walk(tree):
        if isinstance(below, ast.ImportFrom) and below.level and below not in top_level:
            raise BundleError(f"{path}:{below.lineno}: a relative import below the top level: move it to the top.")
    kept = "\n".join(line for number, line in enumerate(lines) if number not in removed)
    module.body = re.sub(r"\n{4,}", "\n\n\n", kept).strip("\n")
    return module


def _read_import(path: Path, package: Path, node: ast.stmt) -> Iterator[ImportedName]:
    if isinstance(node, ast.Import):
        for alias in node.names:  # `import a.b` binds `a`
            yield ImportedName(alias.name, "", alias.asname or alias.name.partition(".")[0], is_own=False)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            folder = path.parents[node.level - 1].relative_to(package)
            module = ".".join((*folder.parts, *filter(None, [node.module])))
        for alias in node.names:
            bound = alias.asname or alias.name
            renamed = node.level and bound != alias.name
            is_module = node.level and package.joinpath(*module.split("."), f"{alias.name}.py").is_file()
            if alias.name == "*" or module == "__future__" or renamed or is_module:
                raise BundleError(
                    f"{path}:{node.lineno}: `{ast.unparse(node)}`: import names, under their own names, from the "
                    "module that defines them."
                )
            yield ImportedName(module, alias.name, bound, is_own=bool(node.level))


def _defined_names(node: ast.AST) -> Iterator[str]:
    """The names that a statement at the top level binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Store):
            yield node.id
    elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        for child in ast.iter_child_nodes(node):
            yield from _defined_names(child)


def _find_place(name: str, places: Mapping[str, Place]) -> tuple[str, int]:
    """The file of a module, and the rank of its pattern there."""
    for file, place in places.items():
        for rank, pattern in enumerate(place.modules):
            if fnmatchcase(name, pattern):
                return file, rank
    raise BundleError(f"`{name}` belongs to no published file: add a pattern for it, or do not import it.")


def _needs(modules: Mapping[str, Module], names: Iterable[str]) -> set[str]:
    return {found.module for name in names for found in modules[name].imports if found.is_own}


def _sort(kind: str, needs: Mapping[str, set[str]]) -> list[str]:
    """The names sorted so that each follows those that it needs; otherwise in the given order.

    Raises:
        BundleError: some names need each other.
    """
    order: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise BundleError(f"These {kind} import each other: {' -> '.join((*path, name))}. Move what both need.")
        if name not in order:
            for other in needs:  # in the given order
                if other in needs[name] and other != name:
                    visit(other, (*path, name))
            order[name] = None

    for name in needs:
        visit(name, ())
    return list(order)


class _Writer:
    """Writes one file and refuses names with two meanings."""

    def __init__(self, file: str, file_of: Mapping[str, str]):
        self.file, self.file_of = file, file_of
        self.meanings: dict[str, tuple[str, str]] = {}  # top-level name -> its module and its name there

    def write(self, place: Place, modules: list[Module], origin: str) -> str:
        imports: set[ImportedName] = set()
        for module in modules:
            for name in sorted(module.defined):
                if hasattr(builtins, name):
                    raise BundleError(f"`{module.name}` defines `{name}`, a name of Python's own: rename it.")
                self._claim(name, (module.name, name), module)
            for found in module.imports:
                self._claim(found.bound, (_binds(found), found.name), module)
                if not found.is_own:
                    imports.add(found)
                elif self.file_of[found.module] != self.file:
                    imports.add(found._replace(module=f".{self.file_of[found.module]}"))
            for found in module.type_imports:
                if found.is_own and self.file_of.get(found.module) != self.file:
                    raise BundleError(f"`{module.name}` imports `{found.bound}` for types only: import it as others.")
                if not found.is_own:
                    imports.add(found)
        sources = "\n".join(f"    {module.name.replace('.', '/')}.py" for module in modules)
        note = f"Generated from {origin}: do not edit. The sections are its modules:"
        head = f'"""{place.summary}\n\n{note}\n\n{sources}\n"""'
        has_logger = any(module.has_logger for module in modules)
        text = "\n\n".join(filter(None, [head, _render_imports(imports), LOGGER if has_logger else ""]))
        for number, module in enumerate(modules):
            rule = f"# {module.name.replace('.', '/')}.py ".ljust(WIDTH, "-")
            docstring = f'"""{module.docstring}"""' if module.docstring else ""
            gap = "\n\n\n" if module.body.startswith(("def ", "class ", "@")) else "\n\n"
            text += "\n\n\n" if number or has_logger else "\n\n"  # as ruff formats it after imports
            text += rule + "\n\n" + (docstring + gap if docstring else "") + module.body
        exported = sorted({name for module in modules for name in module.exported})
        if exported:
            text += "\n\n\n__all__ = [\n" + "".join(f'    "{name}",\n' for name in exported) + "]"
        text += "\n"
        real = sum(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.walk(ast.parse(text)))
        if len(_LOADER_PATTERN.findall(text)) != real:
            raise BundleError(
                f"{self.file}.py has text that transformers' loader takes for a relative import: reword the docstring "
                "or comment that begins a line with `from .` or `import .`."
            )
        return text

    def _claim(self, name: str, meaning: tuple[str, str], module: Module) -> None:
        known = self.meanings.setdefault(name, meaning)
        if known != meaning:
            raise BundleError(
                f"`{name}` means {' '.join(meaning)} in `{module.name}`, and {' '.join(known)} elsewhere in "
                f"{self.file}.py: rename one of them."
            )


def _binds(found: ImportedName) -> str:
    """The module that a bound name stands for, or that it is imported from: `a` for `import a.b`."""
    top = found.module.partition(".")[0]
    return top if not found.name and found.bound == top else found.module


def _render_imports(imports: Iterable[ImportedName]) -> str:
    """Import statements in the order of ruff: standard library, other libraries, this folder."""
    groups: list[dict[str, list[str]]] = [{}, {}, {}]  # names by module; under "" what is imported as a module
    for found in imports:
        top = found.module.partition(".")[0]
        group = groups[2 if not top else 0 if top in sys.stdlib_module_names else 1]
        name = found.name or found.module
        named = name if found.bound in (name, _binds(found)) else f"{name} as {found.bound}"
        group.setdefault(found.module if found.name else "", []).append(named)
    blocks = []
    for group in groups:
        lines = []
        for module, names in group.items():
            if module:
                lines.append((True, module.lower(), _render_from(module, sorted(names, key=_member_order))))
            else:
                lines += [(False, name.lower(), f"import {name}") for name in names]
        if lines:
            blocks.append("\n".join(line for *_, line in sorted(lines)))
    return "\n\n".join(blocks)


def _render_from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"


def _member_order(name: str) -> tuple:
    """A sort key as ruff has it: constants, then classes, then the rest; numbers inside names sort by value."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
    return kind, natural
