"""The rule that code does not load the code of other folders, read from the tree of a module or of a card's block.

`trust_remote_code=True` runs the Python files of whatever a call loads, and nobody has read these. The code of a folder
never turns it on. A block of a card may do so only in a call that loads the folder itself: `check` lets such a name
stand for the folder.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from ..models.configuration import CALL_FIELDS

_FLAG = "trust_remote_code"
# A part of the flag's name, from which code could put it together.
_PART_OF_FLAG = re.compile(r"trust_?|_?remote_code|trust_remote\w*|\w*_remote_code")
# The arguments of `pipeline` and `from_pretrained` that say what is loaded.
MODEL_ARGUMENTS = ("model", "pretrained_model_name_or_path")
# The others that a card may give beside the flag. None of them makes a call read another folder.
_HARMLESS = {_FLAG, "task", "revision", "dtype", "torch_dtype", "device", "device_map", "attn_implementation"}


def find_remote_code(tree: ast.Module, is_card: bool) -> Iterator[tuple[ast.AST, str]]:
    """The places of a module that may run the code of other folders, each with what is wrong.

    Args:
        tree: the module.
        is_card: whether it is a block of a card.
    """
    allowed = {id(keyword) for keyword in _own_flags(tree)} if is_card else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == _FLAG and not _is_constant(node.value, False):
            if id(node) in allowed:
                continue
            if is_card:
                yield (
                    node.value,
                    f"`{_FLAG}` may run the code of another folder: write `{_FLAG}=True` in `pipeline(...)` or "
                    "`from_pretrained(...)`, beside one constant name of this model and no further names",
                )
            else:
                yield node.value, f"`{_FLAG}` runs the code of another folder: leave it out"
        elif isinstance(node, ast.Attribute) and node.attr == _FLAG:
            yield node, f"`.{_FLAG}` hides whether the code of another folder runs: do without it"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _PART_OF_FLAG.fullmatch(node.value):
            yield node, f"the text {node.value!r} can turn on `{_FLAG}` unseen: pass it by its name only"
        elif is_card and isinstance(node, ast.Call) and _loads(node):
            if any(keyword.arg is None for keyword in node.keywords):
                yield node, "a call that loads a model has `**`, which hides what it loads: name its arguments"
            most = 2 if _name(node) == "pipeline" else 1  # the task and the model, or the model
            if len(node.args) > most or any(isinstance(argument, ast.Starred) for argument in node.args):
                yield node, f"a call that loads a model has more than {most} arguments by place: name the others"


def find_constants(tree: ast.AST) -> dict[str, ast.expr]:
    """The variables that are bound exactly once in a tree, by an assignment, with what they are bound to."""
    bound = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not _is_read(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            bound[node.arg] += 1
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound[node.name] += 1
        elif isinstance(node, ast.alias):
            bound[(node.asname or node.name).partition(".")[0]] += 1
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            bound[node.name] += 1
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound[node.rest] += 1
    return {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and bound[target.id] == 1
    }


def names_the_folder(name: object) -> bool:
    """Whether `check` lets a name in a card stand for the folder: a Hub id, or a relative path that stays inside."""
    if not isinstance(name, str) or not name or name.startswith(("/", "~", ".")) or "\\" in name or ":" in name:
        return False
    return ".." not in PurePosixPath(name).parts


def _own_flags(tree: ast.Module) -> Iterator[ast.keyword]:
    """The flags of calls that load nothing but the folder."""
    constants = find_constants(tree)
    harmless = _HARMLESS | CALL_FIELDS
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not _loads(node):
            continue
        given = node.args[1:2] if _name(node) == "pipeline" else node.args[:1]
        given += [keyword.value for keyword in node.keywords if keyword.arg in MODEL_ARGUMENTS]
        values = [constants.get(value.id) if isinstance(value, ast.Name) else value for value in given]
        is_own = len(values) == 1 and isinstance(values[0], ast.Constant) and names_the_folder(values[0].value)
        others = {keyword.arg for keyword in node.keywords} - {*MODEL_ARGUMENTS, *harmless}
        if is_own and not others:
            yield from (k for k in node.keywords if k.arg == _FLAG and _is_constant(k.value, True))


def _loads(call: ast.Call) -> bool:
    return _name(call) in ("pipeline", "from_pretrained")


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _is_constant(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
