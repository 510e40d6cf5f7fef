"""Build a Hub folder from a checkpoint or from a recipe, without loading its weights.

A weightless folder has the configuration, the code and the card. Weights, tokenizer and processor stay in the base, at
a commit that the folder names. A full folder also has the processor, and the base's weight files byte for byte.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode, metadata_load, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedConfig, ProcessorMixin
from transformers.utils.hub import extract_commit_hash

from ..compression.validation import check_choice
from ..families import families_that_accept, family_of_type, find_family
from ..hub.loading import name_code
from ..models.family import Family
from .model_card import CardFacts, render_card
from .published_accuracy import render_eval_results
from .published_code import write_code

# Where the weights of a folder are: in the base, beside the code, or not yet copied, see `plan_upload`.
WEIGHTS = ("base", "included", "omitted")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
LICENSE_FIELDS = ("license", "license_name", "license_link")


def export_model(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    weights: str = "base",
    base: str | os.PathLike | None = None,
    revision: str | None = None,
    repository: str | None = None,
    **settings: Any,
) -> Path:
    """Write a folder that loads with the package, and without it by `trust_remote_code=True`.

    Args:
        source: a recipe (a folder of `hub_configs/`), or the folder or Hub id of a checkpoint that `find_family` knows.
        target: a folder that does not exist yet, or is empty.
        weights: "base" leaves weights, tokenizer and processor in the base (a weightless folder). "included" writes the
            processor and copies the weight files. "omitted" writes the processor only: `plan_upload` lets the Hub's
            servers copy the weight files.
        base: folder or Hub id with the weights; default: the base that `source` names, or else `source` itself.
        revision: branch, tag or commit of the base; the folder names the commit that it stands for now.
        repository: the Hub id that the card gives to the folder; default: the name of `target`.
        settings: FlashVID's fields that differ from those of the source.

    Raises:
        ValueError: `target` has content, an argument is out of range, `source` is of no family, or a recipe is made for
            a language model of another depth than its base's. Nothing is written then.
    """
    check_choice("weights", weights, WEIGHTS)
    target = check_target(target)
    own, _ = PreTrainedConfig.get_config_dict(source)
    if own.get("base_model_name_or_path") is None:
        own, base = {}, base or source
    base = str(base or own["base_model_name_or_path"])
    commit = find_commit(base, revision or own.get("base_model_revision"))
    if weights == "base" and commit is None:
        raise ValueError(
            f"`base` is the folder {base!r} and `weights` is 'base': what others load must be on the Hub. Choose "
            "`weights='included'`, or upload the base first and pass its id."
        )
    base_dict, _ = PreTrainedConfig.get_config_dict(base, revision=commit)
    family, config = make_config(own, base, base_dict, settings)
    processor, original = None, family.original_format(base_dict)
    if weights != "base":
        processor = load_base_processor(base, commit, base_dict, family, config)
    elif original is not None and not original.serves_weightless:
        raise ValueError(
            f"{base!r} is an {original.title} checkpoint, whose processor {family.config.__name__} cannot read from "
            "there. Choose `weights='included'`."
        )
    else:
        config.base_model_name_or_path, config.base_model_revision = base, commit
    generation = make_generation_config(base, commit, base_dict, family, config)
    card = make_card(repository or target.name, family, config, base, commit, weights)

    target.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(target)
    generation.save_pretrained(target)
    if processor is not None:
        processor.save_pretrained(target)
    else:
        write_processor_pointer(target, family, source)
    write_code(family.generative_model, target)
    (target / "README.md").write_text(card, encoding="utf-8")
    for path, text in render_eval_results(base, config.retention_ratio).items():
        (target / path).parent.mkdir(exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    if weights == "included":
        for file in tqdm(find_weights(base, commit), desc="copying weights", unit="file"):
            shutil.copyfile(file, target / file.name)
    return target


def check_target(target: str | os.PathLike) -> Path:
    """`target` as a path; a `ValueError` if it is a file or a folder with content."""
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"`target` is {str(target)!r}, which is not empty: choose another folder, or remove it.")
    return target


def find_commit(base: str, revision: str | None) -> str | None:
    """The commit that a revision of a repository stands for; `None` for a local folder, which has none."""
    if Path(base).is_dir():
        return None
    return extract_commit_hash(hf_hub_download(base, "config.json", revision=revision), None)


def make_config(
    own: Mapping[str, Any], base: str, base_dict: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Family, Any]:
    """The family, and the base's configuration with the settings of a recipe or folder and of the caller.

    Args:
        own: `config.json` of the recipe or weightless folder; empty if there is none.
        base: folder or Hub id of the base.
        base_dict: `config.json` of the base.
        settings: of the caller; they replace those of `own`.
    """
    family = family_of_type(own.get("model_type")) or find_family(base)
    if not settings.keys() <= family.config.method_fields:  # another reader of the base may have them
        readers = families_that_accept(dict(base_dict))
        family = max(readers, key=lambda reader: len(reader.config.method_fields), default=family)
    for name in sorted(settings.keys() - family.config.method_fields):
        known = ", ".join(sorted(family.config.method_fields))
        raise ValueError(f"`{name}` is no field of {family.config.model_type!r}: choose from {known}.")
    if not family.config.accepts(dict(base_dict)):
        raise ValueError(
            f"`model_type` is {own.get('model_type')!r}, and that of the base {base!r} is "
            f"{base_dict.get('model_type')!r}: they do not belong together. Choose a base of the same family."
        )
    fields = {name: value for name, value in own.items() if name in family.config.method_fields}
    config = family.config.from_dict(dict(base_dict), **{**fields, **settings})
    if own and not settings:
        _check_depth(config, base)
    config.architectures = [family.generative_model.__name__]
    name_code(config)
    return family, config


def _check_depth(config: Any, base: str) -> None:
    """Raise a `ValueError` unless the average layer sees a share of `retention_ratio` of the video tokens."""
    depth = config.get_text_config().num_hidden_layers
    lower = min(config.pruning_layer, depth)
    average = config.retention_ratio * config.expansion * (lower + (depth - lower) * config.llm_retention_ratio) / depth
    if abs(average / config.retention_ratio - 1) > 1e-3:
        raise ValueError(
            f"`pruning_layer` is {config.pruning_layer} and `llm_retention_ratio` {config.llm_retention_ratio}: with "
            f"the {depth} layers of {base!r} a layer sees {average:.4f} of the video tokens, not `retention_ratio` "
            f"({config.retention_ratio}). Remove both from the recipe to have them derived."
        )


def load_base_processor(
    base: str, commit: str | None, base_dict: Mapping[str, Any], family: Family, config: Any
) -> ProcessorMixin:
    """The processor of a full folder."""
    original = family.original_format(base_dict)
    if original is None:
        return family.processor.from_pretrained(base, revision=commit)
    return original.build_processor(config, base, commit)


def make_generation_config(
    base: str, commit: str | None, base_dict: Mapping[str, Any], family: Family, config: Any
) -> GenerationConfig:
    """The base's generation settings, completed if it is an original checkpoint, which leaves some to its code."""
    try:
        generation = GenerationConfig.from_pretrained(base, revision=commit)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    original = family.original_format(base_dict)
    if original is not None:
        original.complete_generation(generation, base, commit)
    return generation


def processor_pointer(family: Family) -> dict[str, Any]:
    """`processor_config.json` of a weightless folder: the class that loads the processor of the base."""
    processor = family.processor
    module = processor.__module__.rpartition(".")[2]
    return {
        "processor_class": processor.__name__,
        "auto_map": {"AutoProcessor": f"{module}.{processor.__name__}"},
    }


def write_processor_pointer(target: Path, family: Family, source: str | os.PathLike) -> None:
    """Write the `processor_config.json` of a weightless folder, with a recipe's settings, and the code of its class."""
    recipe = Path(source, "processor_config.json")
    own = json.loads(recipe.read_text(encoding="utf-8")) if recipe.exists() else {}
    text = json.dumps({**own, **processor_pointer(family)}, indent=2)
    (target / "processor_config.json").write_text(text + "\n", encoding="utf-8")
    write_code(family.processor, target)


def make_card(repository: str, family: Family, config: Any, base: str, commit: str | None, weights: str) -> str:
    """README.md, with the licence that the base's own card states."""
    return render_card(
        CardFacts(
            repository=repository,
            family=family.name,
            settings=config.to_dict(),
            num_layers=config.get_text_config().num_hidden_layers,
            base=base if commit else None,
            base_revision=commit,
            weights="base" if weights == "base" else "included",
            license=read_license(base, commit),
        )
    )


def read_license(base: str, commit: str | None) -> dict[str, Any]:
    """The licence fields of the base's card; empty if it has none."""
    try:
        card = Path(base, "README.md") if commit is None else hf_hub_download(base, "README.md", revision=commit)
        metadata = metadata_load(card) or {}
    except (EntryNotFoundError, FileNotFoundError):
        return {}
    return {name: metadata[name] for name in LICENSE_FIELDS if name in metadata}


def find_weights(base: str, commit: str | None) -> list[Path]:
    """The weight files of the base, downloaded if necessary.

    Raises:
        ValueError: the base has no weights in safetensors.
    """
    folder = Path(base)
    if commit is not None:
        offline = is_offline_mode()  # some versions of huggingface_hub ignore it if the revision is a commit
        found = snapshot_download(base, revision=commit, allow_patterns=[*WEIGHT_FILES], local_files_only=offline)
        folder = Path(found)
    files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    if not files:
        raise ValueError(f"{base!r} has no weights in safetensors: convert them first (`save_pretrained` writes them).")
    return files
