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
_MODEL = ("model", "pretrained_model_name_or_path")
# The others that a card may give beside the flag. None of them makes a call read another folder.
_HARMLESS = {
    *(_FLAG, "task", "revision", "code_revision", "dtype", "torch_dtype", "device", "device_map", "max_memory"),
    *("attn_implementation", "low_cpu_mem_usage", "use_safetensors", "local_files_only", "force_download", "token"),
}
# Fields of a configuration that name code.
_NAMES_OF_CODE = ("auto_map", "custom_pipelines")


def find_remote_code(tree: ast.Module, is_card: bool) -> Iterator[tuple[ast.AST, str]]:
    """The places of a module that may run the code of other folders, each with what is wrong.

    Args:
        tree: the module.
        is_card: whether it is a block of a card.
    """
    allowed = {id(keyword) for _, keyword in _own_flags(tree)} if is_card else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == _FLAG and not _is_constant(node.value, False):
            if id(node) in allowed:
                continue
            if is_card:
                yield (
                    node.value,
                    f"`{_FLAG}` may run the code of another folder: write `{_FLAG}=True` in `pipeline(...)` or "
                    "`from_pretrained(...)`, beside one constant name of this model, settings of FlashVID, and none "
                    f"but {', '.join(sorted(_HARMLESS - {_FLAG}))}",
                )
            else:
                yield node.value, f"`{_FLAG}` runs the code of another folder: leave it out"
        elif isinstance(node, ast.Attribute) and node.attr == _FLAG:
            yield node, f"`.{_FLAG}` hides whether the code of another folder runs: do without it"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _PART_OF_FLAG.fullmatch(node.value):
            yield node, f"the text {node.value!r} can turn on `{_FLAG}` unseen: pass it by its name only"
        elif is_card and isinstance(node, ast.Attribute) and node.attr in _NAMES_OF_CODE:
            yield node, f"`.{node.attr}` names code that a later call may run: do without it"
        elif not is_card and isinstance(node, ast.Call) and _loads(node):
            if any(_is_text(given) for given in _models_of(node)):
                yield node, "loads a model of a fixed name, with the caller's arguments: let the caller name it"
        elif is_card and isinstance(node, ast.Call) and _loads(node):
            if any(keyword.arg is None for keyword in node.keywords):
                yield node, "a call that loads a model has `**`, which hides what it loads: name its arguments"
            most = 2 if _name(node) == "pipeline" else 1  # the task and the model, or the model
            if len(node.args) > most or any(isinstance(argument, ast.Starred) for argument in node.args):
                yield node, f"a call that loads a model has more than {most} arguments by place: name the others"


def find_model_names(tree: ast.AST) -> set[str]:
    """The models that a block loads: constants given to `pipeline` or `from_pretrained`, also by a variable."""
    constants = find_constants(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {name for call in calls for name in _names_in(call, constants) if name is not None}


def find_trusted_names(code: str) -> set[str]:
    """The names of models that a block of a card loads with `trust_remote_code`."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # it does not run
    return {name for name, _ in _own_flags(tree)}


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


def names_the_folder(name: str) -> bool:
    """Whether `check` lets a name in a card stand for the folder: a Hub id, or a relative path that stays inside."""
    if not name or name.startswith(("/", "~", ".")) or "\\" in name or ":" in name:
        return False
    return ".." not in PurePosixPath(name).parts


def _own_flags(tree: ast.Module) -> Iterator[tuple[str, ast.keyword]]:
    """The flags of calls that load nothing but the folder, each with the name that it has there."""
    constants = find_constants(tree)
    harmless = _HARMLESS | CALL_FIELDS
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not _loads(node):
            continue
        names = _names_in(node, constants)
        others = {keyword.arg for keyword in node.keywords} - {*_MODEL, *harmless}
        if len(names) == 1 and names[0] is not None and names_the_folder(names[0]) and not others:
            yield from ((names[0], k) for k in node.keywords if k.arg == _FLAG and _is_constant(k.value, True))


def _models_of(call: ast.Call) -> list[ast.expr]:
    """The arguments of a call that say which model it loads."""
    place = {"pipeline": 1, "from_pretrained": 0}.get(_name(call), len(call.args))
    return call.args[place : place + 1] + [keyword.value for keyword in call.keywords if keyword.arg in _MODEL]


def _names_in(call: ast.Call, constants: dict[str, ast.expr]) -> list[str | None]:
    """The models that a call loads, by `_models_of`; `None` for what is no constant text."""
    values = [constants.get(value.id) if isinstance(value, ast.Name) else value for value in _models_of(call)]
    texts = (value.value if isinstance(value, ast.Constant) else None for value in values)
    return [text if isinstance(text, str) else None for text in texts]


def _is_text(node: ast.expr) -> bool:
    """Whether an expression is a text, or is put together from texts."""
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in ast.walk(node)
    )


def _loads(call: ast.Call) -> bool:
    return _name(call) in ("pipeline", "from_pretrained")


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _is_constant(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
