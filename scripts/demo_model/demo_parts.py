"""The parts of the trained demo model: its tokenizer, its processor and its configuration.

The model is a small Qwen2.5-VL: two frames of 128 x 128 pixels make 64 video tokens.
"""

from typing import Any

from tokenizers import AddedToken, pre_tokenizers
from transformers import ProcessorMixin, Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from flashvid_hf import FlashVIDQwen2_5_VLConfig, FlashVIDQwen2_5_VLProcessor
from flashvid_hf.evaluation.moving_shapes import ANSWERS, COLOURS, DIRECTIONS, NUMBERS, SHAPES, SIDE, TEXTURES
from flashvid_hf.evaluation.moving_shapes.dataset import rows, video_seeds
from flashvid_hf.models.qwen.family_qwen import CHAT_TEMPLATE, TOKENS
from flashvid_hf.tiny_models import SPECIAL_TOKENS

VOCABULARY = 1024  # most tokens, without the special ones
# Common words for the tokenizer, so that it does not split ordinary prompts into letters.
ENGLISH = """\
A video is a sequence of pictures. Describe what happens in this video, please. What is there to see, and where is it?
Which one is on the left, and which one is on the right, above or below? Who is it, when does it begin, how long does it
take, why does it end, and what comes after that? Look at the picture and answer the question. You are a helpful
assistant. I can see a small green ball and a large blue box in front of the wall. There are two or three of them. The
first thing moves to the other side, then it stops and goes back. They do not know about this, but we would like to say
more of what has been shown here. Yes, no, none, not, many, some, all, every, each, any, only, also, very, just, now,
time, people, day, man, woman, child, house, water, world, work, part, place, thing, make, get, give, find, think."""
# The word for each class of what a video token shows; "" for a class without a word.
CLASS_WORDS = {
    "shape": ("", *SHAPES),
    "colour": ("", *COLOURS),
    "direction": ("", " still", *DIRECTIONS),
    "size": ("", " small", ""),
    "texture": TEXTURES,
    "number": ("", *NUMBERS),
    "centre": ("", ""),
}
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
        videos: number of videos of the training split whose prompts are read.

    Raises:
        RuntimeError: an answer, or the word of a class, is more than one token. The training needs single tokens.
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
    """A processor that resizes every picture to the number of pixels that MovingShapes has."""
    patches = {"patch_size": VISION["patch_size"], "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}  # pixels of a picture
    return FlashVIDQwen2_5_VLProcessor(
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
