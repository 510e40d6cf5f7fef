"""The record of LLaVA-OneVision, and the parts that the record of LLaVA-Video shares with it."""

from collections.abc import Mapping
from typing import Any

from transformers import (
    GenerationConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionVideoProcessor,
    ProcessorMixin,
    Qwen2Tokenizer,
)

from ..family import Family, OriginalFormat, PaperSetup, PublishedSize, SmallShape, TinyShape, VideoGeometry
from .configuration_flashvid_llava_onevision import FlashVIDLlavaOnevisionConfig
from .modeling_flashvid_llava_onevision import (
    FlashVIDLlavaOnevisionForConditionalGeneration,
    FlashVIDLlavaOnevisionModel,
)
from .newlines import count_rows, pooled_side
from .original_checkpoints import is_original
from .processing_flashvid_llava_onevision import FlashVIDLlavaOnevisionProcessor
from .processing_flashvid_llava_video import FlashVIDLlavaVideoProcessor, upstream_arguments

# Like the template of llava-hf: in a message, images and videos come before the text, wherever they stand. Text must be
# a part of a message, not the message itself.
CHAT_TEMPLATE = """\
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
# Pixels a side. 9 x 9 patches of 14 pixels leave some pixels over, as the 27 x 27 patches of 384 pixels do.
SMALL_IMAGE = 130


class LlavaGeometry(VideoGeometry):
    """Every frame is cut into a square of patches, which is pooled to about half its width and height.

    `mm_newline_position` says where newlines follow. Newlines are no tokens of the vision tower.
    """

    def grid_of_pixels(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Equal for frames of every size, because the processor makes them square."""
        side = pooled_side(_pool_mode(config), config.vision_config.image_size // config.vision_config.patch_size)
        return side, side

    def grids_of_call(self, config: Any, inputs: Mapping[str, Any], num_videos: int) -> list[tuple[int, int]]:
        return [self.grid_of_pixels(config, 0, 0)] * num_videos

    def num_newlines(self, config: Any, num_grids: int, rows: int) -> int:
        return count_rows(_newline_position(config), num_grids, rows) - num_grids * rows**2

    def drops_newlines(self, config: Any) -> bool:
        return _newline_position(config) == "grid"  # a row that loses all its tokens loses its newline

    def seen_part(self, config: Any) -> float:
        """The part of the frame that whole patches cover, without a last row and column that the pooling leaves over.

        In the published models it is 378 of 384 pixels, or 364 of 384 if patches are pooled two by two.
        """
        patch, pixels = config.vision_config.patch_size, config.vision_config.image_size
        patches = pixels // patch
        if _pool_mode(config) != "bilinear":
            patches -= patches % 2
        return patches * patch / pixels

    def describe(self, config: Any, height: int, width: int) -> str:
        rows, columns = self.grid_of_pixels(config, height, width)
        newlines = {
            "frame": " and a newline",
            "grid": ", and each of its rows a newline",
            "one_token": ", and the video a newline",
            "no_token": "",
        }
        return f"A frame of any size makes {rows * columns} tokens{newlines[_newline_position(config)]}."


def _pool_mode(config: Any) -> str:
    return getattr(config, "mm_spatial_pool_mode", FlashVIDLlavaOnevisionConfig.mm_spatial_pool_mode)


def _newline_position(config: Any) -> str:
    return getattr(config, "mm_newline_position", FlashVIDLlavaOnevisionConfig.mm_newline_position)


def make_small_processor(config: Any, tokenizer: Any) -> ProcessorMixin:
    """The processor of a small LLaVA-OneVision."""
    vision = config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    pixels = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return FlashVIDLlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **pixels),
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATE,
    )


def build_original_processor(config: Any, source: str, revision: str | None) -> ProcessorMixin:
    """The family's processor, which counts the same placeholders. An original checkpoint has only a tokenizer."""
    tokenizer = Qwen2Tokenizer.from_pretrained(source, revision=revision)
    return FlashVIDLlavaOnevisionProcessor(**upstream_arguments(config, tokenizer))


def complete_original_generation(generation: GenerationConfig, source: str, revision: str | None) -> None:
    """Set the tokens that end an answer and that pad it, as the conversation of the original code does."""
    tokenizer = Qwen2Tokenizer.from_pretrained(source, revision=revision)
    generation.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    generation.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")


FAMILY = Family(
    FlashVIDLlavaOnevisionConfig,
    FlashVIDLlavaOnevisionModel,
    FlashVIDLlavaOnevisionForConditionalGeneration,
    FlashVIDLlavaOnevisionProcessor,
    title="LLaVA-OneVision",
    geometry=LlavaGeometry(),
    published_vision={"patch_size": 14, "image_size": 384},
    is_exact=False,
    published_sizes=(
        # config.json of the language models that these start from: Qwen/Qwen2-0.5B, -7B and -72B.
        PublishedSize("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 24),
        PublishedSize("llava-hf/llava-onevision-qwen2-7b-ov-hf", 28),
        PublishedSize("llava-hf/llava-onevision-qwen2-72b-ov-hf", 80),
    ),
    paper_setup=PaperSetup("llava-hf/llava-onevision-qwen2-7b-ov-hf", 32),
    vllm="flashvid_hf.vllm_plugin.llava_onevision:FlashVIDLlavaOnevision",
    original=OriginalFormat(
        title="original LLaVA",
        matches=is_original,
        load_processor=FlashVIDLlavaVideoProcessor.from_pretrained,
        build_processor=build_original_processor,
        complete_generation=complete_original_generation,
        serves_weightless=False,
    ),
    # The third of the four vision layers makes the features.
    tiny=TinyShape(
        text={"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        vision={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "patch_size": 4,
            "image_size": 20,
            "vision_use_head": False,
        },
        fields={
            "vision_feature_layer": -2,
            "image_token_index": 90,
            "video_token_index": 91,
            "image_grid_pinpoints": [[20, 20], [20, 40], [40, 20]],
        },
    ),
    small=SmallShape(
        text={"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        vision={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 240,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": 14,
            "image_size": SMALL_IMAGE,
            "vision_use_head": False,
        },
        fields={"image_grid_pinpoints": [[i * SMALL_IMAGE, j * SMALL_IMAGE] for i in (1, 2) for j in (1, 2)]},
        tokens={"image_token_index": "<image>", "video_token_index": "<video>"},
        make_processor=make_small_processor,
    ),
)
