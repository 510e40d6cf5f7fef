"""Weightless folders: `config.json` names a base, the repository that has the weights, tokenizer and processor."""

import os
from typing import Any

from transformers import PreTrainedConfig

# What a loader may pass on to find the files of a repository.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments of `from_pretrained` that say where and how the files are found."""
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}


def follow_base(
    own: dict[str, Any], hub: dict[str, Any], config: PreTrainedConfig | None = None
) -> tuple[str, dict[str, Any]] | None:
    """Where the weights, the tokenizer and the processor of a weightless folder lie, and how they are found.

    The folder itself has to say that it is weightless: a configuration that is passed beside another checkpoint must
    not lead away from its weights.

    Args:
        own: `config.json` of the folder, see `read_config`.
        hub: how the folder is found, see `hub_arguments`.
        config: the configuration to be used, if it may name another base than the folder does.

    Returns:
        The base and its arguments; `None` if the folder has no base.
    """
    base, revision = own.get("base_model_name_or_path"), own.get("base_model_revision")
    if base is None:
        return None
    if getattr(config, "base_model_name_or_path", None) is not None:
        base, revision = config.base_model_name_or_path, config.base_model_revision
    elsewhere = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    return base, {**elsewhere, "revision": revision or "main"}


def read_config(path: str | os.PathLike | None, hub: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`; empty where there is none, as in a folder of weights or of a processor alone."""
    if path is None:  # a `state_dict` is loaded
        return {}
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(path, **hub)
    except OSError:
        return {}
    return config_dict
