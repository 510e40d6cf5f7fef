"""A weightless folder in an engine: weights, tokenizer and processor are read from the base that it names."""

from typing import Any

from transformers import ProcessorMixin

from ..hub.weightless import follow_base, read_config

# The fields that `processor_config.json` of a weightless folder may have.
_HONOURED = {"processor_class", "auto_map", "video_processor"}


def lead_to_base(model_config: Any) -> None:
    """Make the options of an engine point at the base, if their model is a weightless folder.

    The folder's settings for processing videos become `mm_processor_kwargs`, unless those already set them.

    Raises:
        ValueError: the folder changes another part of its base's processor.
    """
    folder, options = str(model_config.model), model_config.multimodal_config
    hub = {"revision": model_config.revision, "token": model_config.hf_token}
    base = follow_base(read_config(folder, hub), hub, model_config.hf_config)
    if base is None:
        return
    own, _ = ProcessorMixin.get_processor_dict(folder, **hub)
    if others := sorted(own.keys() - _HONOURED):
        raise ValueError(
            f"`processor_config.json` of {folder!r} has {others}, and an engine reads only 'video_processor' of a "
            "folder without weights. Export the folder with `--weights included`."
        )
    source, revision = base[0], base[1]["revision"]
    if model_config.tokenizer == model_config.model:
        model_config.tokenizer, model_config.tokenizer_revision = _path_of(source, revision), revision
    model_config.model, model_config.revision = _path_of(source, revision), revision
    # vLLM has already looked for a tokenizer in the folder. It found none, and concluded that the model is for text
    # only.
    vars(model_config).pop("_supports_multimodal_inputs_cache", None)
    options.mm_processor_kwargs = {**own.get("video_processor", {}), **(options.mm_processor_kwargs or {})}


def _path_of(source: str, revision: str) -> str:
    """The path or name by which vLLM finds a repository: offline it needs the folder in the cache."""
    from huggingface_hub import constants
    from vllm.transformers_utils.repo_utils import get_model_path

    return str(get_model_path(source, revision)) if constants.HF_HUB_OFFLINE else source
