"""Checks of `config.json` and `processor_config.json`. No model is loaded."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..methods.flashvid import FlashVID
from .hub_folder import FULL, RECIPE, WEIGHTLESS, CheckFailure, HubFolder

# Fields of a recipe's configuration besides FlashVID's settings.
_RECIPE_FIELDS = {
    "model_type",
    "architectures",
    "auto_map",
    "custom_pipelines",
    "base_model_name_or_path",
    "base_model_revision",
}


def check_settings(folder: HubFolder) -> Iterator[str]:
    """The settings have the types and ranges that the family's configuration class demands."""
    settings = {name: value for name, value in folder.config.items() if name in folder.family.config.method_fields}
    if folder.kind == RECIPE:
        for name in sorted(folder.config.keys() - _RECIPE_FIELDS - settings.keys()):
            yield f"config.json: `{name}` is no field of a recipe, remove it or correct its name"
    try:
        if folder.kind == RECIPE:
            # The default of this ratio is derived from the depth of the base model, which a recipe does not have.
            folder.family.config(**{"llm_retention_ratio": 1.0, **settings})
        else:
            folder.family.config.from_pretrained(folder.path)
    except Exception as error:  # `@strict` configurations raise exceptions of their own
        yield f"config.json: {error}"


def check_compressing_settings(folder: HubFolder) -> Iterator[str]:
    """The method is FlashVID, and both of its steps reduce tokens: before the language model, and inside of it."""
    method = folder.config.get("compression_method", FlashVID.name)
    if method != FlashVID.name:
        yield (
            f"config.json: `compression_method` is {method!r}: other methods than {FlashVID.name!r} are for "
            "comparisons, leave it out here and choose it per load or per call"
        )
        return
    if folder.kind == RECIPE:
        defaults, names = folder.family.config, ("retention_ratio", "expansion", "llm_retention_ratio")
        ratio, expansion, kept = (folder.config.get(name, getattr(defaults, name)) for name in names)
        depth, layer = None, None  # unknown, as they depend on the base model
    else:
        config = folder.full_config
        ratio, expansion, kept = config.retention_ratio, config.expansion, config.llm_retention_ratio
        depth, layer = config.get_text_config().num_hidden_layers, config.pruning_layer
    if not all(isinstance(value, (int, float)) for value in (ratio, expansion)):
        raise CheckFailure("config.json: `retention_ratio` and `expansion` must be numbers")
    if ratio * expansion >= 1:
        yield (
            f"config.json: `retention_ratio` is {ratio} and `expansion` is {expansion}: it compresses nothing, choose "
            f"a `retention_ratio` below {1 / expansion:g}"
        )
    if kept is not None and kept >= 1:
        yield f"config.json: `llm_retention_ratio` is {kept}: it prunes nothing, choose one below 1 or leave it out"
    if depth is not None and layer >= depth:
        yield (
            f"config.json: `pruning_layer` is {layer} of {depth} layers: it prunes nothing, choose one below {depth} "
            "or leave it out"
        )


def check_classes(folder: HubFolder) -> Iterator[str]:
    """`auto_map`, `architectures`, `custom_pipelines` and the processor's `auto_map` name classes that exist."""
    expected, named = folder.family.config.auto_classes, folder.config.get("auto_map") or {}
    for loader, reference in expected.items():
        if loader not in named:
            yield f"config.json: `auto_map` has no {loader}, set it to {reference!r}"
        elif named[loader] != reference:
            yield f"config.json: `auto_map` names {named[loader]!r} for {loader}, set it to {reference!r}"
    classes = [c.__name__ for c in (folder.family.generative_model, folder.family.base_model)]
    architectures = folder.config.get("architectures") or []
    if len(architectures) != 1 or architectures[0] not in classes:
        yield f"config.json: `architectures` is {architectures}, set it to {classes[:1]}"
    pipelines = folder.config.get("custom_pipelines") or {}
    if "video-text-to-text" not in pipelines:
        yield "config.json: `custom_pipelines` has no 'video-text-to-text', copy it from another folder"
    references: list[Any] = []
    for path in sorted(folder.path.glob("*.json")):
        if path.name.endswith(("config.json", "chat_template.json")):
            for field, value in _fields_below(folder.read_json(path.name)):
                if field in ("auto_map", "custom_pipelines"):
                    references += _references_in(value)
                elif field in ("custom_generate", "trust_remote_code") and value:
                    yield f"{path.name}: `{field}` is {value!r}: it can run code from elsewhere, remove it"
    place = "the package" if folder.kind == RECIPE else "the folder"
    for reference in dict.fromkeys(map(str, references)):
        if not folder.defines(reference):
            yield f"`{reference}` is named, but {place} has no such class: correct the name or add the module"


def _fields_below(content: Any) -> Iterator[tuple[str, Any]]:
    """All fields of a JSON value, at any depth, with their values; but none inside `auto_map` or `custom_pipelines`."""
    if isinstance(content, dict):
        for field, value in content.items():
            yield field, value
            if field not in ("auto_map", "custom_pipelines"):
                yield from _fields_below(value)
    elif isinstance(content, list):
        for value in content:
            yield from _fields_below(value)


def _references_in(mapping: Any) -> Iterator[Any]:
    """The classes that an `auto_map` names, or `custom_pipelines` in its fields `impl`."""
    for value in mapping.values() if isinstance(mapping, dict) else [mapping]:
        if isinstance(value, dict):
            yield value.get("impl", "")
        else:
            yield from (name for name in (value if isinstance(value, list) else [value]) if name)


def is_hub_id(name: str) -> bool:
    """Whether this is the id of a repository, and no path to a folder."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~")) and not Path(name).exists()


def check_base_model(folder: HubFolder) -> Iterator[str]:
    """A folder without weights names the model whose weights it uses; one with weights names none."""
    base, revision = folder.config.get("base_model_name_or_path"), folder.config.get("base_model_revision")
    if folder.kind == FULL:
        if base is not None:
            yield f"config.json: `base_model_name_or_path` is {base!r}, and the folder has weights: remove the field"
        return
    if not isinstance(base, str) or not base:
        yield f"config.json: `base_model_name_or_path` is {base!r}, set it to the model whose weights are used"
    elif not is_hub_id(base):
        yield f"config.json: `base_model_name_or_path` is {base!r}, which is no Hub id: set it to 'name/of-it'"
    is_commit = isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision)
    if not is_commit and (folder.kind == WEIGHTLESS or revision is not None):
        yield f"config.json: `base_model_revision` is {revision!r}, set it to a commit (40 hexadecimal digits)"
