"""Convert a checkpoint of the original LLaVA code (published by lmms-lab) into a full Hub folder.

LLaVA-Video becomes `FlashVIDLlavaVideo`, and LLaVA-OneVision becomes `FlashVIDLlavaOnevision`. The weights get this
library's names and, if asked for, another dtype; `export_model` in contrast copies the weight files unchanged. The
weights must match the model in name and shape; otherwise nothing is written.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..families import find_original_format
from .export import (
    check_target,
    find_commit,
    load_base_processor,
    make_card,
    make_config,
    make_generation_config,
)


def convert_llava(
    source: str | Path,
    target: str | Path,
    dtype: str = "auto",
    repository: str | None = None,
    say: Callable[[str], Any] = lambda message: None,
    **settings: Any,
) -> Path:
    """Write the folder and return its path.

    Args:
        source: folder or Hub id of the original checkpoint.
        target: a folder that does not exist yet, or is empty.
        dtype: of the written weights; "auto" keeps that of the checkpoint.
        repository: the Hub id that the card gives to the folder; default: the name of `target`.
        say: called with one line of text before each step.
        settings: FlashVID's fields that differ from the defaults. Only LLaVA-Video has `mm_spatial_pool_mode` and
            `mm_newline_position`: with one of them an original LLaVA-OneVision becomes a LLaVA-Video.

    Raises:
        ValueError: `target` has content, `source` is no original checkpoint, or a weight does not fit.
    """
    source, target = str(source), check_target(target)
    commit = find_commit(source, None)
    config_dict, _ = PreTrainedConfig.get_config_dict(source, revision=commit)
    if find_original_format(config_dict) is None:
        raise ValueError(
            f"`model_type` of {source!r} is {config_dict.get('model_type')!r}: original LLaVA checkpoints say "
            "'llava_qwen', or 'llava' with the architecture 'LlavaQwenForCausalLM'. For an upstream checkpoint use "
            "`flashvid-hf export`."
        )
    family, config = make_config({}, source, config_dict, settings)
    processor = load_base_processor(source, commit, config_dict, family, config)

    say(f"reading {source} as {family.generative_model.__name__}")
    model, info = family.generative_model.from_pretrained(
        source,
        revision=commit or "main",
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for fault in ("missing", "unexpected", "mismatched"):
        check_keys(source, fault, info[f"{fault}_keys"])
    model.generation_config = make_generation_config(source, commit, config_dict, family, config)

    say(f"writing {model.num_parameters():,} parameters and the code to {target}")
    model.save_pretrained(target)
    say("writing the processor and the card")
    processor.save_pretrained(target)
    card = make_card(repository or target.name, family, model.config, source, commit, "included")
    (target / "README.md").write_text(card, encoding="utf-8")
    return target


def check_keys(source: str | Path, fault: str, keys: Collection) -> None:
    """Raise a `ValueError` if there are faulty weights.

    Args:
        source: the checkpoint, for the message.
        fault: "missing", "unexpected" or "mismatched".
        keys: names of the weights, or tuples of a name, the shape in the checkpoint and the shape in the model.
    """
    if keys:
        listed = [f"{key[0]} {tuple(key[1])} for {tuple(key[2])}" if isinstance(key, tuple) else key for key in keys]
        raise ValueError(
            f"{len(keys)} {fault} weights in {str(source)!r}, the first of them {', '.join(sorted(listed)[:5])}. "
            "Compare its `config.json` with its files, and download again what is incomplete. Nothing was written."
        )
