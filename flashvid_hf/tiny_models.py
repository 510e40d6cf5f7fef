"""Models with random weights in the architecture of every family, to try the package without a download.

`build_tiny_model` makes a model that takes token ids and pixels; a call takes milliseconds on a CPU.
`build_small_folder` writes a larger model as a complete Hub folder, with tokenizer, processor, code and card. The
models show numbers of tokens and their cost. Their answers mean nothing.

    python -m flashvid_hf.tiny_models build/small --family qwen3_vl
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import ProcessorMixin, Qwen2Tokenizer, set_seed

from .families import FAMILIES, family_named
from .models.family import Family
from .publishing.versions import INSTALLATION

# Fields that all tiny, and that all small language models share. They are small, so that a CPU is fast enough.
TINY_TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SMALL_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Special tokens of all small models; the family's record has the others.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
tags: [video, token-compression, flashvid]
---
# FlashVID demo

A small {family}-shaped model with **random weights**, compressed by FlashVID (arXiv 2602.08024). It exists to try the
mechanics without a download; its answers mean nothing.

{installation}
```python
from transformers import pipeline

pipe = pipeline("video-text-to-text", model="{name}", trust_remote_code=True)
print(pipe("clip.mp4", text="What happens?", max_new_tokens=16))
```
"""


def build_tiny_config(
    family: Family | str, config_class: Any = None, text: dict[str, Any] | None = None, **fields: Any
) -> Any:
    """The configuration of a tiny model: six language layers, four vision layers, frames of 20 pixels or few patches.

    Args:
        family: a record, or the name of a family.
        config_class: class of the configuration, such as upstream's; default: the family's class.
        text: fields of the language model that differ from `TINY_TEXT` and the record.
        fields: other fields of the configuration, including FlashVID's.
    """
    family = _record(family)
    shape = family.tiny
    return (config_class or family.config)(
        text_config={**TINY_TEXT, **shape.text, **(text or {})},
        vision_config=dict(shape.vision),
        **shape.fields,
        **fields,
    )


def build_tiny_model(family: Family | str, attn_implementation: str = "sdpa", **flashvid: Any) -> Any:
    """A FlashVID model with a language modeling head and random weights. Every call gives a family the same weights.

    Args:
        family: a record, or the name of a family.
        attn_implementation: as in `from_pretrained`.
        flashvid: FlashVID's fields that differ from the family's defaults.
    """
    family = _record(family)
    set_seed(0)
    config = build_tiny_config(family, **flashvid)
    config._attn_implementation = attn_implementation
    return scramble(family.generative_model(config), 0.2)


def scramble(model: torch.nn.Module, deviation: float = 0.2) -> Any:
    """Draw weights with a deviation at which tokens differ and attention is not uniform; set evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, deviation)
    return model.eval()


def build_tokenizer(family: Family | str = FAMILIES[0]) -> Qwen2Tokenizer:
    """A byte-level tokenizer with the family's special tokens."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=[], padding_side="left")
    tokens = [*SPECIAL_TOKENS, *_record(family).small.tokens.values()]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return tokenizer


def build_processor(family: Family | str = FAMILIES[0]) -> ProcessorMixin:
    """The processor of a small model."""
    tokenizer = build_tokenizer(family)
    return _record(family).small.make_processor(build_small_config(tokenizer, family), tokenizer)


def build_small_config(tokenizer: Qwen2Tokenizer, family: Family | str = FAMILIES[0], **flashvid: Any) -> Any:
    """The configuration of a small model of a family, with 14 language layers and a `retention_ratio` of 0.1."""
    return _record(family).config(**upstream_fields(tokenizer, family), **{"retention_ratio": 0.1, **flashvid})


def upstream_fields(tokenizer: Qwen2Tokenizer, family: Family | str) -> dict[str, Any]:
    """The fields of a small model's configuration that upstream's configuration has too."""
    shape = _record(family).small
    text = {
        "vocab_size": len(tokenizer),
        **SMALL_TEXT,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        **shape.text,
    }
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in shape.tokens.items()}
    return {"text_config": text, "vision_config": dict(shape.vision), **ids, **shape.fields}


def build_small_folder(folder: str | Path, family: Family | str = FAMILIES[0], seed: int = 0, **flashvid: Any) -> Path:
    """Write the folder of a small model and return its path. An existing folder is replaced.

    Args:
        folder: where to write; its content is deleted first.
        family: a record, or the name of a family.
        seed: of the random weights.
        flashvid: FlashVID's fields that differ from the family's defaults.
    """
    folder, family = Path(folder), _record(family)
    shutil.rmtree(folder, ignore_errors=True)
    processor = build_processor(family)
    set_seed(seed)
    model = scramble(family.generative_model(build_small_config(processor.tokenizer, family, **flashvid)), 0.1)
    # Random weights generate any byte: suppress all but printable characters.
    printable = {processor.tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)}
    model.generation_config.suppress_tokens = sorted(set(range(len(processor.tokenizer))) - printable)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(
        CARD.replace("{name}", folder.name).replace("{family}", family.name).replace("{installation}", INSTALLATION)
    )
    return folder


def _record(family: Family | str) -> Family:
    return family_named(family) if isinstance(family, str) else family


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--family", default=FAMILIES[0].name, choices=[family.name for family in FAMILIES])
    arguments = parser.parse_args()
    build_small_folder(arguments.folder, arguments.family)
