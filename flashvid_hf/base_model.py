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
    pretrained_model_name_or_path: str | os.PathLike | None, hub: dict[str, Any], config: PreTrainedConfig | None = None
) -> tuple[str | os.PathLike | None, dict[str, Any] | None]:
    """Where the weights, the tokenizer and the processor of a folder lie.

    The folder itself has to say that it is weightless: a configuration that is passed beside another checkpoint must
    not lead away from its weights.

    Args:
        hub: how the folder is found, see `hub_arguments`.
        config: the configuration to be used, if it may name another base than the folder's `config.json`.

    Returns:
        The base and how it is found; the folder itself and `None` if it has no base.
    """
    own = {} if pretrained_model_name_or_path is None else read_config(pretrained_model_name_or_path, hub)
    if own.get("base_model_name_or_path") is None:
        return pretrained_model_name_or_path, None
    base, revision = own["base_model_name_or_path"], own.get("base_model_revision")
    if getattr(config, "base_model_name_or_path", None) is not None:
        base, revision = config.base_model_name_or_path, config.base_model_revision
    elsewhere = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    return base, {**elsewhere, "revision": revision or "main"}


def read_config(path: str | os.PathLike, hub: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`; empty where there is none, as in a folder of weights or of a processor alone."""
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(path, **hub)
    except OSError:
        return {}
    return config_dict
