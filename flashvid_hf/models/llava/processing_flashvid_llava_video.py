"""Processor of LLaVA-Video: its placeholders follow from its pooling and newlines, its prompt is the original's."""

import math
from typing import Any

from transformers import (
    AddedToken,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Tokenizer,
)

from ...compression.validation import check_choice
from ...hub.processing_flashvid import FlashVIDProcessor
from ...hub.weightless import follow_base, hub_arguments, read_config
from .configuration_flashvid_llava_video import NEWLINE_POSITIONS, POOL_MODES, FlashVIDLlavaVideoConfig
from .newlines import count_rows, pooled_side
from .original_checkpoints import is_original

# The conversation "qwen_1_5" of the original code, with its system prompt.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}<video>
{% elif part.type == 'image' -%}<image>
{% elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
# Mean and standard deviation of the pixels that SigLIP expects.
_SIGLIP_PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


class FlashVIDLlavaVideoProcessor(FlashVIDProcessor, LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor, with the placeholders of LLaVA-Video. It reads files, see `FlashVIDProcessor`.

    T frames of s * s tokens take T * (s * s + 1) placeholders with `mm_newline_position="frame"`, T * s * (s + 1) with
    "grid", T * s * s + 1 with "one_token" and T * s * s with "no_token". The videos of a call may have different
    numbers of frames. Then `pixel_values_videos` is a list of tensors.

    Args:
        mm_spatial_pool_mode, mm_newline_position: as in the configuration of the model.

    Raises:
        ValueError: `mm_spatial_pool_mode` or `mm_newline_position` has an unknown value.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        num_image_tokens=None,
        vision_feature_select_strategy=None,
        chat_template=None,
        image_token="<image>",
        video_token="<video>",
        vision_aspect_ratio="anyres_max_9",
        mm_spatial_pool_mode="average",
        mm_newline_position="frame",
        **kwargs,
    ):
        check_choice("mm_spatial_pool_mode", mm_spatial_pool_mode, POOL_MODES)
        check_choice("mm_newline_position", mm_newline_position, NEWLINE_POSITIONS)
        self.mm_spatial_pool_mode, self.mm_newline_position = mm_spatial_pool_mode, mm_newline_position
        super().__init__(
            image_processor,
            tokenizer,
            video_processor,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            video_token=video_token,
            vision_aspect_ratio=vision_aspect_ratio,
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load the processor of a folder, or make the processor of an original checkpoint, which has only a tokenizer.

        For a weightless folder, whose base is an original checkpoint, the processor is made too.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            kwargs: as upstream; for an original checkpoint also `mm_spatial_pool_mode` and `mm_newline_position`.
        """
        hub = hub_arguments(kwargs)
        config_dict = read_config(pretrained_model_name_or_path, hub)
        base = follow_base(config_dict, hub)
        if base is None and not is_original(config_dict):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        layout = {name: value for name, value in kwargs.items() if name.startswith("mm_")}
        config = FlashVIDLlavaVideoConfig.from_dict(config_dict, **layout)
        source, found_by = base or (pretrained_model_name_or_path, hub)
        return cls.from_config(config, Qwen2Tokenizer.from_pretrained(source, **found_by))

    @classmethod
    def from_config(cls, config: Any, tokenizer: Any) -> "FlashVIDLlavaVideoProcessor":
        """Make the processor from a model's configuration and the tokenizer of its language model.

        The tokenizer is changed, see `upstream_arguments`.

        Raises:
            ValueError: the placeholders do not get the ids that the configuration has for them.
        """
        return cls(
            **upstream_arguments(config, tokenizer),
            mm_spatial_pool_mode=config.mm_spatial_pool_mode,
            mm_newline_position=config.mm_newline_position,
        )

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * self._count_placeholders(len(video_inputs["pixel_values_videos"][video_idx]))

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs):
        counts = super()._get_num_multimodal_tokens(image_sizes, **kwargs)
        if video_sizes is not None:
            counts.num_video_tokens = [self._count_placeholders(num_frames) for num_frames, *_ in video_sizes]
        return counts

    def _count_placeholders(self, num_frames: int) -> int:
        side = pooled_side(self.mm_spatial_pool_mode, math.isqrt(self.num_image_tokens))
        return count_rows(self.mm_newline_position, num_frames, side)


def upstream_arguments(config: Any, tokenizer: Any) -> dict[str, Any]:
    """The arguments of upstream's `LlavaOnevisionProcessor` for a model.

    Args:
        config: the model's configuration.
        tokenizer: the tokenizer of its language model. It is changed: `<image>` and `<video>` are added, and it pads on
            the left.

    Raises:
        ValueError: the two tokens do not get the ids that the configuration has for them.
    """
    vision = config.vision_config
    for token, name in (("<image>", "image_token_index"), ("<video>", "video_token_index")):
        tokenizer.add_tokens(AddedToken(token, special=True, normalized=False))
        index = tokenizer.convert_tokens_to_ids(token)
        if index != getattr(config, name):
            raise ValueError(
                f"`{name}` is {getattr(config, name)}, and the tokenizer's number of {token!r} is {index}. Set "
                f"`{name}` of the configuration to {index}."
            )
    # `padding_side` takes effect now; `init_kwargs` is what the tokenizer saves.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    size = {"height": vision.image_size, "width": vision.image_size}
    return {
        "image_processor": LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=config.image_grid_pinpoints, **_SIGLIP_PIXELS
        ),
        "tokenizer": tokenizer,
        "video_processor": LlavaOnevisionVideoProcessor(size=size, do_sample_frames=False, **_SIGLIP_PIXELS),
        "num_image_tokens": (vision.image_size // vision.patch_size) ** 2,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "chat_template": CHAT_TEMPLATE,
        "vision_aspect_ratio": config.vision_aspect_ratio,
    }


__all__ = ["FlashVIDLlavaVideoProcessor"]
