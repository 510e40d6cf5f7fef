"""Build a small FlashVID checkpoint with random weights, shaped like a model family, as a complete Hub folder.

It has everything that a published folder has (configuration, weights, generation settings, processor, tokenizer with
Qwen's special tokens, the code, a card) and runs in seconds on a CPU. Its weights are random: it shows how many tokens
there are and what they cost, and says nothing sensible.

    python scripts/build_demo_model.py build/flashvid-demo --family qwen2_5_vl
"""

import argparse
import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    set_seed,
)

from flashvid_hf import FAMILIES

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
tags: [video, token-compression, flashvid]
---
# FlashVID demo

A small {family}-shaped model with **random weights**, compressed by FlashVID (arXiv 2602.08024). It exists to try the
mechanics without a download; its answers mean nothing.

```python
from transformers import pipeline

pipe = pipeline("video-text-to-text", model="{name}", trust_remote_code=True)
print(pipe("clip.mp4", text="What happens?", max_new_tokens=16))
```
"""


# What tells the families apart: processor, video processor, sizes of both towers.
ROPE = {"rope_type": "default", "rope_theta": 1e6}
SHAPES = {
    "qwen2_5_vl": {
        "processor": Qwen2_5_VLProcessor,
        "video_processor": Qwen2VLVideoProcessor,
        "patch_size": 14,
        "text": {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
        "vision": {"fullatt_block_indexes": [1, 3]},
    },
    "qwen3_vl": {
        "processor": Qwen3VLProcessor,
        "video_processor": Qwen3VLVideoProcessor,
        "patch_size": 16,
        "text": {"head_dim": 16, "rope_parameters": {**ROPE, "mrope_section": [3, 3, 2], "mrope_interleaved": True}},
        "vision": {"deepstack_visual_indexes": [0, 1, 2]},
    },
}
SHAPES["qwen3_vl_moe"] = {
    **SHAPES["qwen3_vl"],
    "text": {**SHAPES["qwen3_vl"]["text"], "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
}


def build_processor(family: str = "qwen2_5_vl") -> ProcessorMixin:
    """Upstream's processor with a byte-level tokenizer that has Qwen's special tokens."""
    shape = SHAPES[family]
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=[], padding_side="left")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    patches = {"patch_size": shape["patch_size"], "temporal_patch_size": 2, "merge_size": 2}
    token = (2 * shape["patch_size"]) ** 2  # pixels
    size = {"shortest_edge": 4 * token, "longest_edge": 256 * token}
    return shape["processor"](
        image_processor=Qwen2VLImageProcessor(size=size, **patches),
        video_processor=shape["video_processor"](
            size={**size, "longest_edge": 16 * size["longest_edge"]},
            do_sample_frames=False,
            cap_pixels_per_frame=False,  # said explicitly, as upstream's default is going to change
            **patches,
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2Tokenizer, family: str = "qwen2_5_vl", **flashvid):
    """The family's proportions in small, with 14 language layers."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 14,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        **SHAPES[family]["text"],
    }
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "patch_size": SHAPES[family]["patch_size"],
        "out_hidden_size": 64,
        **SHAPES[family]["vision"],
    }
    return _classes(family).config(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        **{"retention_ratio": 0.1, **flashvid},
    )


def build_demo_model(folder: str | Path, family: str = "qwen2_5_vl", seed: int = 0, **flashvid) -> Path:
    """Write the folder, replacing an earlier one, and return its path.

    Args:
        family: one of `SHAPES`.
        seed: of the random weights.
        flashvid: FlashVID's fields that differ from the family's defaults.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    processor = build_processor(family)
    set_seed(seed)
    model = _classes(family).generative_model(build_config(processor.tokenizer, family, **flashvid)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)  # large enough that attention and tokens differ
    # Random weights answer with any byte: leave them the printable ones.
    printable = {processor.tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)}
    model.generation_config.suppress_tokens = sorted(set(range(len(processor.tokenizer))) - printable)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.replace("{name}", folder.name).replace("{family}", family))
    return folder


def _classes(family: str):
    return next(classes for classes in FAMILIES if classes.config.base_model_type == family)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="build/flashvid-demo")
    parser.add_argument("--family", default="qwen2_5_vl", choices=SHAPES)
    arguments = parser.parse_args()
    print(build_demo_model(arguments.folder, arguments.family))
