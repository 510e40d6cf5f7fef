"""The trained demo model's folder for the Hub: configuration, code, weights, processor and card."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from demo_parts import make_config
from transformers import GenerationConfig, ProcessorMixin

from flashvid_hf import FlashVIDQwen2_5_VLForConditionalGeneration
from flashvid_hf.evaluation.moving_shapes import TYPES
from flashvid_hf.publishing.versions import INSTALLATION

FOLDER_LIMIT = 16e6  # bytes of weights: the folder lies in this repository
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

It was trained in three stages (`scripts/demo_model/train_demo_model.py`). First the vision tower alone learned to say
what each video token shows, in the words of the answers. Then the language model, whose attention began by looking at
equal words, learned to answer, asked for the colour of a shape and the reverse beside the questions of the benchmark;
at last both learned together. No compression took part. In the second stage the language model saw a random part of
the video tokens at their own places, mostly those that show something, which makes it more tolerant of missing tokens
than a model that always saw all.

What FlashVID and the methods that it is compared with leave of its answers, at 2 to 50 % of the video tokens, is
measured by `flashvid-hf evaluate`, with results in the project's `benchmarks/`.

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
        weights: the weights of the trained model, under the names of upstream's class.
        accuracy: the result of `Training.test`, for the card and for `accuracy.json`.

    Raises:
        ValueError: the weights are larger than `FOLDER_LIMIT`.
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
