"""FlashVID for Hugging Face Transformers: video language models that keep about a tenth of their video tokens.

Importing the package registers its models with the Auto classes and the pipeline `video-text-to-text`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .cache_flashvid import FlashVIDCache
from .compressed_video import CompressedVideo
from .compression import CompressionConfig, compress_video, exact_num_tokens
from .configuration_flashvid_llava_onevision import FlashVIDLlavaOnevisionConfig
from .configuration_flashvid_llava_video import FlashVIDLlavaVideoConfig
from .configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .configuration_flashvid_qwen3_vl import FlashVIDQwen3VLConfig
from .configuration_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeConfig
from .drop_in import flashvid
from .families import FAMILIES, Family, find_family, load_processor
from .method import CompressionMethod, Kept, LayerPruning, TokenScoring
from .methods import available_methods, make_method, register_method
from .modeling_flashvid_llava_onevision import (
    FlashVIDLlavaOnevisionForConditionalGeneration,
    FlashVIDLlavaOnevisionModel,
)
from .modeling_flashvid_llava_video import FlashVIDLlavaVideoForConditionalGeneration, FlashVIDLlavaVideoModel
from .modeling_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLForConditionalGeneration, FlashVIDQwen2_5_VLModel
from .modeling_flashvid_qwen3_vl import FlashVIDQwen3VLForConditionalGeneration, FlashVIDQwen3VLModel
from .modeling_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeForConditionalGeneration, FlashVIDQwen3VLMoeModel
from .pipeline_flashvid import TASK, VideoTextToTextPipeline
from .processing_flashvid import FlashVIDProcessor
from .processing_flashvid_llava_video import FlashVIDLlavaVideoProcessor
from .report import CompressionReport
from .video_download import SCHEMES, fetch_video
from .video_io import FETCHERS, VideoClip, read_video

__version__ = "0.1.0"

for _family in FAMILIES:
    AutoConfig.register(_family.config.model_type, _family.config)
    AutoModel.register(_family.config, _family.base_model)
    AutoModelForImageTextToText.register(_family.config, _family.generative_model)
    AutoModelForMultimodalLM.register(_family.config, _family.generative_model)
    AutoProcessor.register(_family.config, _family.processor or FlashVIDProcessor)
FETCHERS.update(dict.fromkeys(SCHEMES, fetch_video))
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=VideoTextToTextPipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
)

__all__ = [
    "CompressedVideo",
    "CompressionConfig",
    "CompressionMethod",
    "CompressionReport",
    "FAMILIES",
    "Family",
    "FlashVIDCache",
    "FlashVIDLlavaOnevisionConfig",
    "FlashVIDLlavaOnevisionForConditionalGeneration",
    "FlashVIDLlavaOnevisionModel",
    "FlashVIDLlavaVideoConfig",
    "FlashVIDLlavaVideoForConditionalGeneration",
    "FlashVIDLlavaVideoModel",
    "FlashVIDLlavaVideoProcessor",
    "FlashVIDProcessor",
    "FlashVIDQwen2_5_VLConfig",
    "FlashVIDQwen2_5_VLForConditionalGeneration",
    "FlashVIDQwen2_5_VLModel",
    "FlashVIDQwen3VLConfig",
    "FlashVIDQwen3VLForConditionalGeneration",
    "FlashVIDQwen3VLModel",
    "FlashVIDQwen3VLMoeConfig",
    "FlashVIDQwen3VLMoeForConditionalGeneration",
    "FlashVIDQwen3VLMoeModel",
    "Kept",
    "LayerPruning",
    "TokenScoring",
    "VideoClip",
    "VideoTextToTextPipeline",
    "available_methods",
    "compress_video",
    "exact_num_tokens",
    "find_family",
    "flashvid",
    "load_processor",
    "make_method",
    "read_video",
    "register_method",
]
