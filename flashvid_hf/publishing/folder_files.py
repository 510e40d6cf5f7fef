"""The files that the folder of a model may have: an allow-list. `check` and `push` refuse everything else.

    for fault in find_file_faults("build/flashvid"):
        ...                            # "token: is no file of a model's folder: move it out of the folder"

`file_contents` judges the content of a file whose name is allowed.
"""

import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from .file_contents import find_content_fault

_KB, _MB = 10**3, 10**6

# The names of allowed files in each allowed folder, and the most bytes of such a file (`None`: no limit). The limits
# are far above what exists: 0.1 MB of code in a file, tokenizers of 30 MB, an index of 0.1 MB, cards of 0.1 MB.
ALLOWED: dict[str, dict[str, int | None]] = {
    "": {
        "*.py": _MB,
        "*.safetensors": None,
        "*.safetensors.index.json": 64 * _MB,
        "README.md": _MB,
        "LICENSE*": _MB,
        "NOTICE*": _MB,
        ".gitattributes": 64 * _KB,
        "config.json": _MB,
        "generation_config.json": _MB,
        "processor_config.json": _MB,
        "preprocessor_config.json": _MB,
        "video_preprocessor_config.json": _MB,
        "chat_template.jinja": _MB,
        "chat_template.json": _MB,
        "tokenizer_config.json": 16 * _MB,
        "special_tokens_map.json": _MB,
        "added_tokens.json": 16 * _MB,
        "tokenizer.json": 256 * _MB,
        "tokenizer.model": 64 * _MB,
        "vocab.json": 64 * _MB,
        "merges.txt": 64 * _MB,
        "accuracy.json": _MB,
    },
    ".eval_results": {"*.yaml": 64 * _KB, "*.yml": 64 * _KB},
    # Pictures and videos of the card.
    "assets": {f"*.{kind}": 256 * _MB for kind in ("png", "jpg", "jpeg", "gif", "webp", "mp4")},
}
# What git and downloads note beside the files. It is neither read nor uploaded.
BOOKKEEPING = (".git", ".cache")

# Why the best known of the other files are refused.
_REASONS = {
    "is a pickle, which runs code when it is read: save the weights as safetensors": (
        ".bin .pt .pth .pkl .pickle .ckpt .joblib .npy .npz .h5 .msgpack .dill"
    ).split(),
    "is byte code, which nobody can read: remove it": [".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib"],
}

_OTHER = "is no file of a model's folder: move it out of the folder"


def find_file_faults(folder: str | Path) -> Iterator[str]:
    """What is wrong with the files of a folder: names, kinds, sizes, contents. Each fault names the next step.

    A folder passes if it has nothing but the folders `BOOKKEEPING` and plain files of `ALLOWED`, each with a content
    of the kind that its name says.
    """
    for path, entry in _entries(Path(folder)):
        name = path.as_posix()
        if entry.is_symlink():
            yield f"{name}: is a link, and what it leads to can change: put a copy of the file in its place"
        elif not re.fullmatch(r"[\w.-]+", entry.name, re.ASCII):
            yield f"{ascii(name)[1:-1]}: its name has other characters than A-Z, a-z, 0-9, '.', '-' and '_': rename it"
        elif entry.is_dir(follow_symlinks=False):
            if name not in (*ALLOWED, *BOOKKEEPING):
                allowed = " and ".join(f"`{known}`" for known in ALLOWED if known)
                yield f"{name}: only {allowed} are folders inside the folder of a model: move it out of the folder"
        elif not entry.is_file(follow_symlinks=False):
            yield f"{name}: is no file ({stat.filemode(entry.stat().st_mode)}): remove it"
        else:
            yield from _judge_file(path, entry)


def list_files(folder: str | Path) -> list[Path]:
    """The files of a folder without faults, as paths relative to it."""
    return [path for path, entry in _entries(Path(folder)) if entry.is_file(follow_symlinks=False)]


def _entries(folder: Path, inside: Path = Path()) -> Iterator[tuple[Path, os.DirEntry]]:
    """Everything in a folder and in the sub-folders that are allowed, sorted, with paths relative to the folder."""
    with os.scandir(folder / inside) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = inside / entry.name
        yield path, entry
        if path.as_posix() in ALLOWED and entry.is_dir(follow_symlinks=False):
            yield from _entries(folder, path)


def _judge_file(path: Path, entry: os.DirEntry) -> Iterator[str]:
    name, parent, size = path.as_posix(), path.parent.as_posix(), entry.stat().st_size
    kinds = ALLOWED["" if parent == "." else parent]
    hidden = path.name.startswith(".")  # `*` stands for no dot at the beginning, as in a shell
    limits = [limit for kind, limit in kinds.items() if fnmatchcase(path.name, kind) and kind.startswith(".") == hidden]
    if not limits or (path.suffix == ".py" and (not path.stem.isidentifier() or path.stem.startswith("__"))):
        reasons = (reason for reason, suffixes in _REASONS.items() if path.suffix.lower() in suffixes)
        yield f"{name}: {next(reasons, _OTHER)}"
    elif limits[0] is not None and size > limits[0]:
        yield f"{name}: has {size:,} bytes, and at most {limits[0]:,} are allowed: make it smaller or remove it"
    elif fault := find_content_fault(Path(entry.path)):
        yield f"{name}: {fault}"
