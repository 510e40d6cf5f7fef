"""Tiny checkpoints of the original LLaVA code as lmms-lab publishes them: flat `config.json`, old names, a tokenizer.

This module does not import `flashvid_hf`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, SiglipVisionConfig, SiglipVisionModel, set_seed

# The vision tower has 5 x 5 patches. The original removes the last of its four layers, so three are left.
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 20,
    "vision_use_head": False,
}
TEXT = {
    "vocab_size": 264,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Rows of the embedding without a token; the tokenizer gives these ids to the placeholders.
IMAGE, VIDEO = 259, 260
# The fields of the published files other than the sizes of the language model.
PUBLISHED = {
    "architectures": ["LlavaQwenForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "image_aspect_ratio": "anyres_max_9",
    "image_crop_resolution": None,
    "image_grid_pinpoints": [[20, 20], [20, 40], [40, 20]],
    "image_split_resolution": None,
    "initializer_range": 0.02,
    "max_window_layers": 6,
    "mm_hidden_size": 32,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "tiny/siglip",
    "mm_vision_tower_lr": 2e-06,
    "pos_skipping_range": 4096,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "tokenizer_model_max_length": 32768,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "use_cache": True,
    "use_mm_proj": True,
    "use_pos_skipping": False,
    "use_sliding_window": False,
    "vision_tower_pretrained": None,
}
ONEVISION = {"model_type": "llava", "mm_newline_position": "one_token", "image_token_index": IMAGE}
LLAVA_VIDEO = {"model_type": "llava_qwen", "mm_newline_position": "grid", "mm_spatial_pool_stride": 2}


def original_config(layout: dict[str, Any] = LLAVA_VIDEO, **overrides: Any) -> dict[str, Any]:
    """A published `config.json`, except for sizes and for the fields that name the tower and the placeholders."""
    ours = {"vision_config": VISION, "image_token_index": IMAGE, "video_token_index": VIDEO}
    return {**TEXT, **PUBLISHED, **ours, **layout, **overrides}


def original_weights(
    tied: bool = False, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **text_config: Any
) -> dict[str, torch.Tensor]:
    """Weights under the original names. No two are equal, and those of the language model are large: answers vary."""
    set_seed(seed)
    vision = SiglipVisionModel(SiglipVisionConfig(**VISION))
    text = Qwen2ForCausalLM(Qwen2Config(**{**TEXT, **text_config}))
    tower = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in vision.state_dict().items()}
    shapes = {f"model.vision_tower.vision_tower.{name}": value.shape for name, value in tower.items()}
    shapes |= {name: value.shape for name, value in text.state_dict().items()}
    width, visual = TEXT["hidden_size"], VISION["hidden_size"]
    shapes |= {"model.mm_projector.0.weight": (width, visual), "model.mm_projector.0.bias": (width,)}
    shapes |= {"model.mm_projector.2.weight": (width, width), "model.mm_projector.2.bias": (width,)}
    shapes["model.image_newline"] = (width,)
    if tied:
        del shapes["lm_head.weight"]
    norms = {name for name in shapes if "norm" in name and name.endswith("weight")}
    return {name: (torch.randn(shape) * 0.2 + (name in norms)).to(dtype) for name, shape in shapes.items()}


def original_tokenizer() -> Qwen2Tokenizer:
    """A byte-level tokenizer with the special tokens of Qwen2."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_original(folder: Path, weights: dict[str, torch.Tensor], shard: str = "5GB", **config: Any) -> Path:
    """Write the folder of an original checkpoint; `config` as in `original_config`."""
    folder.mkdir(parents=True)
    save_torch_state_dict(weights, folder, max_shard_size=shard)
    (folder / "config.json").write_text(json.dumps(original_config(**config)))
    original_tokenizer().save_pretrained(folder)
    return folder
