"""Build a small FlashVID checkpoint with random weights, shaped like a model family, as a complete Hub folder.

It has everything that a published folder has (configuration, weights, generation settings, processor, tokenizer with
the family's special tokens, the code, a card) and runs in seconds on a CPU. Its weights are random: it shows how many
tokens there are and what they cost, and says nothing sensible.

    python scripts/build_demo_model.py build/random-demo --family qwen2_5_vl
"""

import argparse
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    set_seed,
)

from flashvid_hf import FAMILIES, FlashVIDLlavaVideoProcessor
from flashvid_hf.publishing.versions import INSTALLATION

QWEN_CHAT_TEMPLATE = """\
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
# Like that of llava-hf: pictures before text, wherever they stand, and text only as a part of a message.
LLAVA_ONEVISION_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + ' ' }}
{%- for part in message.content if part.type == 'image' -%}<image>{%- endfor -%}
{%- for part in message.content if part.type == 'video' -%}<video>{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ '\n' + part.text }}{%- endfor -%}
<|im_end|>
{%- endfor -%}
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

{installation}
```python
from transformers import pipeline

pipe = pipeline("video-text-to-text", model="{name}", trust_remote_code=True)
print(pipe("clip.mp4", text="What happens?", max_new_tokens=16))
```
"""


def make_qwen_processor(processor: type, video_processor: type, config: Any, tokenizer: Any) -> ProcessorMixin:
    patch_size = config.vision_config.patch_size
    patches = {"patch_size": patch_size, "temporal_patch_size": 2, "merge_size": 2}
    token = (2 * patch_size) ** 2  # pixels
    size = {"shortest_edge": 4 * token, "longest_edge": 256 * token}
    videos = video_processor(
        size={**size, "longest_edge": 16 * size["longest_edge"]},
        do_sample_frames=False,
        cap_pixels_per_frame=False,  # said explicitly, as upstream's default is going to change
        **patches,
    )
    return processor(
        # vLLM normalises videos like images.
        image_processor=Qwen2VLImageProcessor(
            size=size, image_mean=videos.image_mean, image_std=videos.image_std, **patches
        ),
        video_processor=videos,
        tokenizer=tokenizer,
        chat_template=QWEN_CHAT_TEMPLATE,
    )


def make_llava_onevision_processor(config: Any, tokenizer: Any) -> ProcessorMixin:
    vision = config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    pixels = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **pixels),
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=LLAVA_ONEVISION_CHAT_TEMPLATE,
    )


class Shape(NamedTuple):
    """What tells a family apart.

    Args:
        make_processor: from the configuration and the tokenizer.
        tokens: special tokens beside those of all families, by the field of the configuration that has their number.
        text, vision: fields of the language model and of the vision tower.
        fields: other fields of the configuration.
    """

    make_processor: Callable[[Any, Any], ProcessorMixin]
    tokens: dict[str, str]
    text: dict[str, Any]
    vision: dict[str, Any]
    fields: dict[str, Any] = {}


SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROPE = {"rope_type": "default", "rope_theta": 1e6}
QWEN_TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
QWEN_VISION = {"depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64}
IMAGE_SIZE = 130  # LLaVA: 9 x 9 patches and some pixels over, like the 27 x 27 of 384 pixels
SHAPES = {
    "qwen2_5_vl": Shape(
        partial(make_qwen_processor, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        tokens=QWEN_TOKENS,
        text={"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
        vision={**QWEN_VISION, "patch_size": 14, "fullatt_block_indexes": [1, 3]},
    ),
    "qwen3_vl": Shape(
        partial(make_qwen_processor, Qwen3VLProcessor, Qwen3VLVideoProcessor),
        tokens=QWEN_TOKENS,
        text={"head_dim": 16, "rope_parameters": {**ROPE, "mrope_section": [3, 3, 2], "mrope_interleaved": True}},
        vision={**QWEN_VISION, "patch_size": 16, "deepstack_visual_indexes": [0, 1, 2]},
    ),
    "llava_onevision": Shape(
        make_llava_onevision_processor,
        tokens={"image_token_index": "<image>", "video_token_index": "<video>"},
        text={"model_type": "qwen2", "rope_parameters": ROPE},
        vision={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 240,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": 14,
            "image_size": IMAGE_SIZE,
            "vision_use_head": False,
        },
        fields={"image_grid_pinpoints": [[i * IMAGE_SIZE, j * IMAGE_SIZE] for i in (1, 2) for j in (1, 2)]},
    ),
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SHAPES["qwen3_vl_moe"] = SHAPES["qwen3_vl"]._replace(text={**SHAPES["qwen3_vl"].text, **EXPERTS})
SHAPES["llava_video"] = SHAPES["llava_onevision"]._replace(make_processor=FlashVIDLlavaVideoProcessor.from_config)
CLASSES = {family.config.model_type.removeprefix("flashvid_"): family for family in FAMILIES}


def build_tokenizer(family: str = "qwen2_5_vl") -> Qwen2Tokenizer:
    """A byte-level tokenizer with the family's special tokens."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=[], padding_side="left")
    tokens = [*SPECIAL_TOKENS, *SHAPES[family].tokens.values()]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return tokenizer


def build_processor(family: str = "qwen2_5_vl") -> ProcessorMixin:
    """The family's processor."""
    tokenizer = build_tokenizer(family)
    return SHAPES[family].make_processor(build_config(tokenizer, family), tokenizer)


def build_config(tokenizer: Qwen2Tokenizer, family: str = "qwen2_5_vl", **flashvid):
    """The family's proportions in small, with 14 language layers."""
    return CLASSES[family].config(**upstream_fields(tokenizer, family), **{"retention_ratio": 0.1, **flashvid})


def upstream_fields(tokenizer: Qwen2Tokenizer, family: str) -> dict[str, Any]:
    """The fields of the configuration that upstream's has too."""
    shape = SHAPES[family]
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 14,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        **shape.text,
    }
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in shape.tokens.items()}
    return {"text_config": text, "vision_config": shape.vision, **ids, **shape.fields}


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
    model = CLASSES[family].generative_model(build_config(processor.tokenizer, family, **flashvid)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)  # large enough that attention and tokens differ
    # Random weights answer with any byte: leave them the printable ones.
    printable = {processor.tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)}
    model.generation_config.suppress_tokens = sorted(set(range(len(processor.tokenizer))) - printable)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(
        CARD.replace("{name}", folder.name).replace("{family}", family).replace("{installation}", INSTALLATION)
    )
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="build/random-demo")
    parser.add_argument("--family", default="qwen2_5_vl", choices=SHAPES)
    arguments = parser.parse_args()
    print(build_demo_model(arguments.folder, arguments.family))
