"""Build a small Qwen2.5-VL-shaped FlashVID checkpoint with random weights, as a complete Hub folder.

It has everything that a published folder has (configuration, weights, generation settings, processor, tokenizer with
Qwen's special tokens, the code, a card) and runs in seconds on a CPU. Its weights are random: it shows how many tokens
there are and what they cost, and says nothing sensible.

    python scripts/build_demo_model.py build/flashvid-demo
"""

import argparse
import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    set_seed,
)

from flashvid_hf import FlashVIDQwen2_5_VLConfig, FlashVIDQwen2_5_VLForConditionalGeneration

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

A small Qwen2.5-VL-shaped model with **random weights**, compressed by FlashVID (arXiv 2602.08024). It exists to try the
mechanics without a download; its answers mean nothing.

```python
from transformers import pipeline

pipe = pipeline("video-text-to-text", model="{name}", trust_remote_code=True)
print(pipe("clip.mp4", text="What happens?", max_new_tokens=16))
```
"""


def build_processor() -> Qwen2_5_VLProcessor:
    """Upstream's processor with a byte-level tokenizer that has Qwen's special tokens."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=[], padding_side="left")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 256 * 28 * 28}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **patches),
        video_processor=Qwen2VLVideoProcessor(
            size={**size, "longest_edge": 16 * size["longest_edge"]},
            cap_pixels_per_frame=False,
            do_sample_frames=False,
            **patches,
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2Tokenizer, **flashvid) -> FlashVIDQwen2_5_VLConfig:
    """Qwen2.5-VL's proportions in small: 14 layers, pruning at layer 10."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 14,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1, 3],
    }
    return FlashVIDQwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        **{"retention_ratio": 0.1, **flashvid},
    )


def build_demo_model(folder: str | Path, seed: int = 0, **flashvid) -> Path:
    """Write the folder, replacing an earlier one, and return its path.

    Args:
        seed: of the random weights.
        flashvid: FlashVID's fields that differ from the family's defaults.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    processor = build_processor()
    set_seed(seed)
    model = FlashVIDQwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer, **flashvid)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)  # large enough that attention and tokens differ
    # Random weights answer with any byte: leave them the printable ones.
    printable = {processor.tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)}
    model.generation_config.suppress_tokens = sorted(set(range(len(processor.tokenizer))) - printable)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.replace("{name}", folder.name))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="build/flashvid-demo")
    print(build_demo_model(parser.parse_args().folder))
