"""The parts of the trained demo model: its tokenizer, processor and configuration, and its folder for the Hub.

The model has Qwen2.5-VL's architecture in small: a picture of 128 x 128 pixels is 64 video tokens, of two frames.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from flashvid_hf import FlashVIDQwen2_5_VLConfig, FlashVIDQwen2_5_VLForConditionalGeneration
from flashvid_hf.evaluation.moving_shapes import ANSWERS, COLOURS, DIRECTIONS, NUMBERS, SHAPES, SIDE, TEXTURES, TYPES
from flashvid_hf.evaluation.moving_shapes.dataset import rows, video_seeds
from flashvid_hf.models.qwen.family_qwen import CHAT_TEMPLATE, TOKENS
from flashvid_hf.publishing.versions import INSTALLATION
from flashvid_hf.tiny_models import SPECIAL_TOKENS

VOCABULARY = 1024  # tokens at most, beside the special ones
# Common words, so that ordinary prompts are not spelled out letter by letter.
ENGLISH = """\
A video is a sequence of pictures. Describe what happens in this video, please. What is there to see, and where is it?
Which one is on the left, and which one is on the right, above or below? Who is it, when does it begin, how long does it
take, why does it end, and what comes after that? Look at the picture and answer the question. You are a helpful
assistant. I can see a small green ball and a large blue box in front of the wall. There are two or three of them. The
first thing moves to the other side, then it stops and goes back. They do not know about this, but we would like to say
more of what has been shown here. Yes, no, none, not, many, some, all, every, each, any, only, also, very, just, now,
time, people, day, man, woman, child, house, water, world, work, part, place, thing, make, get, give, find, think."""
# The word for each class of what a video token is trained to say, "" for one that has none.
CLASS_WORDS = {
    "shape": ("", *SHAPES),
    "colour": ("", *COLOURS),
    "direction": ("", " still", *DIRECTIONS),
    "size": ("", " small", ""),
    "texture": TEXTURES,
    "number": ("", *NUMBERS),
    "centre": ("", ""),
}
FOLDER_LIMIT = 16e6  # bytes of weights
WIDTH = 192
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "bos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10]},
}
VISION = {
    "depth": 4,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_heads": 3,
    "out_hidden_size": WIDTH,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 64,  # pixels
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": 1,  # at 2 frames a second temporal grids are numbered 0, 1, 2 ...
    "initializer_range": 0.05,
}


def train_tokenizer(videos: int = 400) -> Qwen2Tokenizer:
    """A byte-level tokenizer trained on the prompts of MovingShapes and on some English, with Qwen's special tokens.

    Args:
        videos: of the training split, whose prompts are read.

    Raises:
        RuntimeError: an answer, or a word for what a video token shows, is more than one token. The training relies on
            one.
    """
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    untrained = Qwen2Tokenizer(vocab={**alphabet, "<|endoftext|>": len(alphabet)}, merges=[], padding_side="left")
    texts = [row["prompt"] + "\n" + row["answer"] for row in rows(video_seeds("train", videos))]
    words = [word for answers in ANSWERS.values() for word in answers]
    tokenizer = untrained.train_new_from_iterator([*texts, *words * 50, *[ENGLISH] * 20], vocab_size=VOCABULARY)
    names = [*SPECIAL_TOKENS, *TOKENS.values()]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    for word in (*words, *(word for of_label in CLASS_WORDS.values() for word in of_label if word)):
        if len(tokenizer.encode(word)) != 1:
            raise RuntimeError(f"the word {word!r} is {tokenizer.encode(word)}, but must be one token")
    return tokenizer


def make_processor(tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    """A processor that brings every picture to the pixels of MovingShapes."""
    patches = {"patch_size": VISION["patch_size"], "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}  # pixels of a picture
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **patches),
        video_processor=Qwen2VLVideoProcessor(size=size, do_sample_frames=False, cap_pixels_per_frame=False, **patches),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: Qwen2Tokenizer, **flashvid: Any) -> FlashVIDQwen2_5_VLConfig:
    """The model's configuration.

    Args:
        flashvid: FlashVID's fields that differ from the family's defaults.
    """
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in TOKENS.items()}
    return FlashVIDQwen2_5_VLConfig(
        text_config=text, vision_config=VISION, tie_word_embeddings=True, **ids, **{"retention_ratio": 0.1, **flashvid}
    )


CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
license: mit
language: en
tags: [video, token-compression, flashvid]
---
# FlashVID demo, trained on MovingShapes

A model with Qwen2.5-VL's architecture and {parameters} million parameters, trained from random weights on
MovingShapes: synthetic videos of moving shapes with questions whose answers are known
(`flashvid_hf.evaluation.moving_shapes`). [FlashVID](https://arxiv.org/abs/2602.08024) compresses its video tokens. It
answers the eight types of questions of that benchmark, about flat shapes in 16 frames, and knows nothing else: it is
there to see on any machine, without a download, what a compression keeps and loses.

It was trained in three stages (`scripts/train_demo_model.py`). First the vision tower alone learned to say what each
video token shows, in the words of the answers. Then the language model, whose attention began by looking at equal
words, learned to answer, asked for the colour of a shape and the reverse beside the questions of the benchmark; at last
both learned together. No compression took part. In the second stage the language model saw a random part of the video
tokens at their own places, mostly those that show something, which makes it more tolerant of missing tokens than a
model that always saw all.

What FlashVID and the methods that it is compared with leave of its answers, at 2 to 50 % of the video tokens, is
measured by `scripts/evaluate.py`, with results in the project's `benchmarks/`.

Right answers on {videos} videos of the test split without compression (`retention_ratio=1.0`):

| type | four options | one word |
|---|---|---|
{table}

{installation}
```python
from transformers import pipeline

pipe = pipeline("video-text-to-text", model="{name}", trust_remote_code=True)
question = "Which way does the yellow diamond move? Answer with one word."
print(pipe("clip.mp4", text=question, num_frames=16, max_new_tokens=4))
```
"""


def save_folder(
    weights: dict[str, torch.Tensor], processor: ProcessorMixin, folder: Path, accuracy: dict[str, Any]
) -> Path:
    """Write the folder for the Hub, replacing an earlier one: configuration, code, weights, processor, card.

    Args:
        weights: of the trained model, under the names that upstream's class has too.
        accuracy: as `test_model` gives it; it goes into the card and into `accuracy.json`.

    Raises:
        ValueError: the weights are larger than the folder may be.
    """
    num_bytes = sum(
        tensor.numel() * tensor.element_size() for name, tensor in weights.items() if name != "lm_head.weight"
    )
    if num_bytes > FOLDER_LIMIT:
        raise ValueError(f"the weights have {num_bytes / 1e6:.1f} MB, but at most {FOLDER_LIMIT / 1e6:.0f} are wanted")
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = processor.tokenizer
    model = FlashVIDQwen2_5_VLForConditionalGeneration(make_config(tokenizer))
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        do_sample=False,
        max_new_tokens=16,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    cells = accuracy["accuracy"]
    table = "\n".join(f"| {kind} | {cells['choice'][kind]:.3f} | {cells['open'][kind]:.3f} |" for kind in TYPES)
    fields = {
        "{parameters}": f"{model.num_parameters() / 1e6:.1f}",
        "{name}": folder.name,
        "{table}": table,
        "{installation}": INSTALLATION,
        "{videos}": str(accuracy["videos"]),
    }
    card = CARD
    for field, value in fields.items():
        card = card.replace(field, value)
    (folder / "README.md").write_text(card)
    (folder / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    return folder
