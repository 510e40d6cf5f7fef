"""Upload a folder to the Hub: first a plan, then the upload only if it is asked for."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from .checking import CHECKS, run_check
from .export import WEIGHT_FILES, export_model
from .folder_files import find_file_faults, list_files
from .hub_folder import RECIPE, WEIGHTLESS, HubFolder


@dataclass(frozen=True)
class PlannedFile:
    """One file of a planned repository.

    Args:
        path: in the repository.
        size: in bytes; `None` if the Hub does not state it.
        file: the local file to upload; `None` for a file that the Hub copies from the base.
    """

    path: str
    size: int | None
    file: Path | None


@dataclass(frozen=True)
class UploadPlan:
    """All files of a planned repository, and the base from which the Hub copies weights (`None` if it copies none)."""

    repository: str
    files: tuple[PlannedFile, ...]
    base: str | None = None
    base_revision: str | None = None


@contextmanager
def plan_upload(folder: str | os.PathLike, repository: str, *, copy_weights: bool = False) -> Iterator[UploadPlan]:
    """The plan of an upload; nothing is sent. Temporary files of the plan exist until the context ends.

    Args:
        folder: a folder that `export_model` or `save_pretrained` wrote.
        repository: the Hub id of the repository, "owner/name".
        copy_weights: make a full repository of a weightless folder: the Hub copies the base's weight files on its own
            servers. This works only within one storage region of the Hub.

    Raises:
        ValueError: `repository` is no such id; the folder has a file that `folder_files` refuses, has no
            `config.json`, is a recipe, has neither weights nor a base, names no commit of its base, has a card that
            does not name `repository`, or fails a check that runs no code; or `copy_weights` is True and the folder
            names no base.
    """
    folder = Path(folder)
    validate_repo_id(repository)
    if "/" not in repository:
        raise ValueError(f"`repository` is {repository!r}: it must be 'name/of-it', with the name of its owner.")
    if not folder.is_dir():
        raise ValueError(f"`folder` is {str(folder)!r}, which is no folder: choose the folder of a model.")
    for fault in find_file_faults(folder):
        raise ValueError(f"{fault}. Nothing was sent. `push` uploads only the files that a model needs.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` is {str(folder)!r}, and has no `config.json`: choose the folder of a model.")
    config, _ = PreTrainedConfig.get_config_dict(folder)
    base, commit = config.get("base_model_name_or_path"), config.get("base_model_revision")
    kind = HubFolder(folder).kind
    if kind == RECIPE:
        raise ValueError(f"{str(folder)!r} is a recipe, which has no code. Build a folder with `flashvid-hf export`.")
    if kind == WEIGHTLESS and base is None:
        raise ValueError(
            f"{str(folder)!r} has neither weights nor a base that has them. Build a folder with `flashvid-hf export`."
        )
    if base is not None and commit is None:
        raise ValueError(
            f"`base_model_revision` of {str(folder)!r} is missing, so that its base is not pinned. Build a folder with "
            "`flashvid-hf export`."
        )
    card = folder / "README.md"
    spoken_of = rf"(?<![\w-]){re.escape(repository)}(?![\w-]|\.\w)"  # not as a part of a longer id
    if not card.is_file() or not re.search(spoken_of, card.read_text(encoding="utf-8")):
        raise ValueError(
            f"`README.md` of {str(folder)!r} does not speak of {repository!r}: its snippets would load something else. "
            f"Build the folder with `flashvid-hf export --repository {repository}`."
        )
    if others := set(HubFolder(folder).trusted_names) - {repository}:
        raise ValueError(
            f"`README.md` of {str(folder)!r} loads {min(others)!r} with `trust_remote_code=True`: that is for "
            f"{repository!r} alone. Build the folder with `flashvid-hf export --repository {repository}`."
        )
    _check_without_running(folder)
    if not copy_weights:
        yield UploadPlan(repository, tuple(_list_files(folder)))
        return
    if base is None:
        raise ValueError(
            f"`copy_weights` is True and {str(folder)!r} names no base: weights are copied for weightless folders. "
            "Leave it out to upload those that the folder has."
        )
    copied = _list_weights(base, commit)
    with tempfile.TemporaryDirectory() as temporary:
        full = export_model(folder, Path(temporary, "full"), weights="omitted", repository=repository)
        yield UploadPlan(repository, (*_list_files(full), *copied), base, commit)


def upload(plan: UploadPlan, *, private: bool = False, message: str = "Upload FlashVID model") -> str:
    """Create the repository if it does not exist, and upload everything in one commit. Returns the URL of the commit.

    The token is the one of `hf auth login` or `HF_TOKEN`.
    """
    api = HfApi()
    api.create_repo(plan.repository, private=private, exist_ok=True)
    operations = [
        CommitOperationAdd(planned.path, str(planned.file))
        if planned.file is not None
        else CommitOperationCopy(
            planned.path,
            planned.path,
            src_revision=plan.base_revision,
            src_repo_id=plan.base,
            src_repo_type="model",
        )
        for planned in plan.files
    ]
    return api.create_commit(plan.repository, operations, commit_message=message).commit_url


def _check_without_running(folder: Path) -> None:
    """Run the checks that run no code; raise a `ValueError` with the first fault."""
    hub_folder = HubFolder(folder)
    for check in CHECKS:
        if hub_folder.kind in check.kinds and not check.runs_code:
            result = run_check(check, hub_folder)
            if result.status == "failed":
                fault = result.message.splitlines()[0]
                raise ValueError(f"{fault}. `flashvid-hf check {folder}` says all that is wrong with the folder.")


def _list_files(folder: Path) -> Iterator[PlannedFile]:
    for path in list_files(folder):
        yield PlannedFile(path.as_posix(), (folder / path).stat().st_size, folder / path)


def _list_weights(base: str, commit: str) -> list[PlannedFile]:
    siblings = HfApi().model_info(base, revision=commit, files_metadata=True).siblings or []
    weights = [file for file in siblings if any(Path(file.rfilename).match(pattern) for pattern in WEIGHT_FILES)]
    if not weights:
        raise ValueError(f"{base!r} has no weights in safetensors at {commit}: they cannot be copied.")
    return [PlannedFile(file.rfilename, file.size, None) for file in sorted(weights, key=lambda file: file.rfilename)]
