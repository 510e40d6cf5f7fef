"""Convert a checkpoint of the original LLaVA code, as lmms-lab publishes them, into a complete FlashVID Hub folder.

LLaVA-Video becomes `FlashVIDLlavaVideo`, LLaVA-OneVision `FlashVIDLlavaOnevision`. The folder has everything that a
published one has (configuration, weights, generation settings, processor, tokenizer, chat template, code, card). Every
weight must find its place, with its shape; otherwise nothing is written.

    python scripts/convert_llava.py lmms-lab/LLaVA-Video-7B-Qwen2 build/FlashVID-LLaVA-Video-7B --retention-ratio 0.1
"""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import LlavaOnevisionProcessor, PreTrainedConfig, ProcessorMixin, Qwen2Tokenizer

from flashvid_hf import FAMILIES, Family, FlashVIDLlavaVideoConfig, find_family
from flashvid_hf.configuration_flashvid_llava_video import NEWLINE_POSITIONS, POOL_MODES
from flashvid_hf.original_llava import is_original
from flashvid_hf.processing_flashvid_llava_video import upstream_arguments

CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
{base_model}tags: [video, token-compression, flashvid]
---
# {name}

{source} with FlashVID (arXiv 2602.08024): the same weights, and a model that compresses the tokens of its videos while
it reads them. By default {ratio:.0%} of them are kept, averaged over the layers of the language model.

```python
from transformers import pipeline

pipe = pipeline("video-text-to-text", model="{name}", trust_remote_code=True)
(answer,) = pipe("clip.mp4", text="What happens in this video?", num_frames=32, max_new_tokens=64)
print(answer["generated_text"], answer["video_tokens"])
```

| setting | value |
|---|---|
{settings}

Each is a field of `config.json` and an argument of `from_pretrained`; `retention_ratio=1.0` compresses nothing.
"""
# What the card says of the configuration, where the model has it.
CARD_FIELDS = (
    "retention_ratio",
    "expansion",
    "pruning_layer",
    "llm_retention_ratio",
    "mm_spatial_pool_mode",
    "mm_newline_position",
    "dtype",
)


def convert_llava(source: str | Path, target: str | Path, dtype: str = "auto", **settings: Any) -> Path:
    """Write the folder and return its path.

    Args:
        source: folder or Hub id of the original checkpoint.
        target: a folder that does not exist yet, or is empty.
        dtype: of the weights; "auto" is that of the checkpoint.
        settings: FlashVID's fields that differ from the defaults, `mm_spatial_pool_mode` and `mm_newline_position`
            included, which LLaVA-Video alone has: with them an original LLaVA-OneVision becomes a LLaVA-Video.

    Raises:
        ValueError: `target` has content, `source` is no original checkpoint, or a weight does not fit.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"`target` is {str(target)!r}, which is not empty: choose another folder, or remove it.")
    config_dict, _ = PreTrainedConfig.get_config_dict(source)
    if not is_original(config_dict):
        raise ValueError(
            f"`model_type` of {str(source)!r} is {config_dict.get('model_type')!r}: original LLaVA checkpoints say "
            "'llava_qwen', or 'llava' with the architecture 'LlavaQwenForCausalLM'. Load an upstream checkpoint with "
            "`from_pretrained` of its FlashVID class, and write the folder with `save_pretrained`."
        )
    family = find_family(source)
    if not settings.keys() <= family.config.method_fields:
        family = next(family for family in FAMILIES if family.config is FlashVIDLlavaVideoConfig)
    config = family.config.from_dict(config_dict, **settings)
    tokenizer = Qwen2Tokenizer.from_pretrained(source)
    processor = make_processor(family, config, tokenizer)

    print(f"[1/3] reading {source} as {family.generative_model.__name__}", flush=True)
    model, info = family.generative_model.from_pretrained(
        source, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    for fault in ("missing", "unexpected", "mismatched"):
        check_keys(source, fault, info[f"{fault}_keys"])
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    print(f"[2/3] writing {model.num_parameters():,} parameters and the code to {target}", flush=True)
    model.save_pretrained(target)
    print("[3/3] writing the processor and the card", flush=True)
    processor.save_pretrained(target)
    (target / "README.md").write_text(make_card(source, target.name, model.config))
    return target


def make_processor(family: Family, config: PreTrainedConfig, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    """The family's own processor; upstream's, which counts the same placeholders, where it has none."""
    if family.processor is None:
        return LlavaOnevisionProcessor(**upstream_arguments(config, tokenizer))
    return family.processor.from_config(config, tokenizer)


def check_keys(source: str | Path, fault: str, keys: Collection) -> None:
    """Raise a `ValueError` if there are any: names, or names with the shapes in checkpoint and model."""
    if keys:
        listed = [f"{key[0]} {tuple(key[1])} for {tuple(key[2])}" if isinstance(key, tuple) else key for key in keys]
        raise ValueError(
            f"{len(keys)} {fault} weights in {str(source)!r}, the first of them {', '.join(sorted(listed)[:5])}. "
            "Compare its `config.json` with its files, and download again what is incomplete. Nothing was written."
        )


def make_card(source: str | Path, name: str, config: PreTrainedConfig) -> str:
    """README.md of the folder `name`; on the Hub it points to the original."""
    on_hub = not Path(source).exists()
    fields = config.to_dict()
    return CARD.format(
        base_model=f"base_model: {source}\n" if on_hub else "",
        name=name,
        source=f"[{source}](https://huggingface.co/{source})" if on_hub else Path(source).name,
        ratio=config.retention_ratio,
        settings="\n".join(f"| `{name}` | {fields[name]} |" for name in CARD_FIELDS if name in fields),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or Hub id of an original checkpoint")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    parser.add_argument("--retention-ratio", type=float, default=argparse.SUPPRESS)
    parser.add_argument("--mm-spatial-pool-mode", choices=POOL_MODES, default=argparse.SUPPRESS)
    parser.add_argument("--mm-newline-position", choices=NEWLINE_POSITIONS, default=argparse.SUPPRESS)
    print(convert_llava(**vars(parser.parse_args())))
