"""Weightless folders: `config.json` names a base, the repository that has the weights, tokenizer and processor."""

import os
from typing import Any

from transformers import PreTrainedConfig

# Arguments of `from_pretrained` that say where the files of a repository are found.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments among `kwargs` that say where and how the files of a repository are found."""
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}


def follow_base(
    own: dict[str, Any], hub: dict[str, Any], config: PreTrainedConfig | None = None
) -> tuple[str, dict[str, Any]] | None:
    """The base of a weightless folder, which has its weights, tokenizer and processor.

    Only the `config.json` of the folder itself makes it weightless. A configuration that is passed with another
    checkpoint must not replace the weights of that checkpoint.

    Args:
        own: `config.json` of the folder, see `read_config`.
        hub: where the folder is found, see `hub_arguments`.
        config: the configuration of the model. If it names a base, that base replaces the folder's.

    Returns:
        Folder or Hub id of the base, and the arguments that find its files; `None` if the folder has no base.
    """
    base, revision = own.get("base_model_name_or_path"), own.get("base_model_revision")
    if base is None:
        return None
    if getattr(config, "base_model_name_or_path", None) is not None:
        base, revision = config.base_model_name_or_path, config.base_model_revision
    elsewhere = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    return base, {**elsewhere, "revision": revision or "main"}


def read_config(path: str | os.PathLike | None, hub: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`; empty if there is none, as in a folder with only weights or only a processor."""
    if path is None:  # a `state_dict` is loaded
        return {}
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(path, **hub)
    except OSError:
        return {}
    return config_dict
