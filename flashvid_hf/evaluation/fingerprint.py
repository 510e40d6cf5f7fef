"""Which model and which questions an evaluation is about, so that results of two are never mixed.

A model under the same name changes when it is trained on, converted again or updated on the Hub.
"""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import hf_hub_download, is_offline_mode
from transformers import PreTrainedConfig
from transformers.utils.hub import extract_commit_hash

from .items import VideoItem

# The files of a folder that the answers of a model depend on. Its card and its results may change.
FILES = (
    "*config.json",
    "*.index.json",
    "*.safetensors",
    "*.bin",
    "tokenizer.*",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
)

_BLOCK = 2**20  # bytes that are read at once


def fingerprint_model(name: str) -> str:
    """What identifies the content of a model: the commit on the Hub, or a hash of a local folder.

    The whole weights are hashed (SHA-256, about a second for each GB), because a few changed numbers change answers:
    sizes, headers and samples of the weights would miss them. That is little beside an evaluation. The base of a
    weightless folder counts too.

    Args:
        name: folder or Hub id.
    """
    found = _hash_folder(Path(name)) if Path(name).is_dir() else _find_commit(name, None)
    own, _ = PreTrainedConfig.get_config_dict(name)
    base = own.get("base_model_name_or_path")
    if base is None:
        return found
    revision = own.get("base_model_revision")
    return f"{found}, base " + (_hash_folder(Path(base)) if Path(base).is_dir() else _find_commit(base, revision))


def fingerprint_questions(items: Iterable[VideoItem]) -> str:
    """A hash of the ids of the videos and of all questions and answers. The videos themselves are not read."""
    questions = [[item.id, [vars(question) for question in item.questions]] for item in items]
    return f"sha256 {hashlib.sha256(json.dumps(questions).encode()).hexdigest()}"


def _hash_folder(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in FILES):
            of_file = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    of_file.update(block)
            whole.update(f"{path.name} {of_file.hexdigest()}\n".encode())
    return f"sha256 {whole.hexdigest()}"


def _find_commit(name: str, revision: str | None) -> str:
    file = hf_hub_download(name, "config.json", revision=revision, local_files_only=is_offline_mode())
    return f"commit {extract_commit_hash(file, None)}"
