"""FlashVID for Hugging Face Transformers: video language models that keep about a tenth of their video tokens.

Importing the package registers its models with the Auto classes and the pipeline `video-text-to-text`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .compression.compress_video import CompressionConfig, compress_video, exact_num_tokens
from .compression.compressed_video import CompressedVideo
from .compression.validation import setting
from .drop_in import flashvid
from .families import FAMILIES, find_family, load_processor
from .hub.code_writer import CODE_WRITERS
from .hub.processing_flashvid import FlashVIDProcessor
from .methods.compression_method import CompressionMethod, Kept, LayerPruning, Signal, Signals, TokenScoring
from .methods.registry import available_methods, make_method, register_method
from .models.cache import FlashVIDCache
from .models.family import Family
from .models.llava.configuration_flashvid_llava_onevision import FlashVIDLlavaOnevisionConfig
from .models.llava.configuration_flashvid_llava_video import FlashVIDLlavaVideoConfig
from .models.llava.modeling_flashvid_llava_onevision import (
    FlashVIDLlavaOnevisionForConditionalGeneration,
    FlashVIDLlavaOnevisionModel,
)
from .models.llava.modeling_flashvid_llava_video import (
    FlashVIDLlavaVideoForConditionalGeneration,
    FlashVIDLlavaVideoModel,
)
from .models.llava.processing_flashvid_llava_onevision import FlashVIDLlavaOnevisionProcessor
from .models.llava.processing_flashvid_llava_video import FlashVIDLlavaVideoProcessor
from .models.qwen.configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .models.qwen.configuration_flashvid_qwen2_vl import FlashVIDQwen2VLConfig
from .models.qwen.configuration_flashvid_qwen3_vl import FlashVIDQwen3VLConfig
from .models.qwen.configuration_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeConfig
from .models.qwen.modeling_flashvid_qwen2_5_vl import (
    FlashVIDQwen2_5_VLForConditionalGeneration,
    FlashVIDQwen2_5_VLModel,
)
from .models.qwen.modeling_flashvid_qwen2_vl import FlashVIDQwen2VLForConditionalGeneration, FlashVIDQwen2VLModel
from .models.qwen.modeling_flashvid_qwen3_vl import FlashVIDQwen3VLForConditionalGeneration, FlashVIDQwen3VLModel
from .models.qwen.modeling_flashvid_qwen3_vl_moe import (
    FlashVIDQwen3VLMoeForConditionalGeneration,
    FlashVIDQwen3VLMoeModel,
)
from .models.qwen.processing_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLProcessor
from .models.qwen.processing_flashvid_qwen2_vl import FlashVIDQwen2VLProcessor
from .models.qwen.processing_flashvid_qwen3_vl import FlashVIDQwen3VLProcessor
from .models.qwen.processing_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeProcessor
from .models.report import CompressionReport
from .publishing.published_code import write_code
from .video.download import SCHEMES, fetch_file
from .video.limits import MediaLimits
from .video.model_size import resizing_of
from .video.pipeline_flashvid import TASK, VideoTextToTextPipeline
from .video.reading import VideoClip, read_video
from .video.sources import FETCHERS

__version__ = "0.1.0"

for _family in FAMILIES:
    # Also adds the classes of a family without imports above. The imports are for readers and type checkers.
    globals().update({_class.__name__: _class for _class in _family.classes})
    AutoConfig.register(_family.config.model_type, _family.config)
    AutoModel.register(_family.config, _family.base_model)
    AutoModelForImageTextToText.register(_family.config, _family.generative_model)
    AutoModelForMultimodalLM.register(_family.config, _family.generative_model)
    AutoProcessor.register(_family.config, _family.processor)
FETCHERS.update(dict.fromkeys(SCHEMES, fetch_file))
CODE_WRITERS["generate"] = write_code
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
    "FlashVIDLlavaOnevisionProcessor",
    "FlashVIDLlavaVideoConfig",
    "FlashVIDLlavaVideoForConditionalGeneration",
    "FlashVIDLlavaVideoModel",
    "FlashVIDLlavaVideoProcessor",
    "FlashVIDProcessor",
    "FlashVIDQwen2_5_VLConfig",
    "FlashVIDQwen2_5_VLForConditionalGeneration",
    "FlashVIDQwen2_5_VLModel",
    "FlashVIDQwen2_5_VLProcessor",
    "FlashVIDQwen2VLConfig",
    "FlashVIDQwen2VLForConditionalGeneration",
    "FlashVIDQwen2VLModel",
    "FlashVIDQwen2VLProcessor",
    "FlashVIDQwen3VLConfig",
    "FlashVIDQwen3VLForConditionalGeneration",
    "FlashVIDQwen3VLModel",
    "FlashVIDQwen3VLProcessor",
    "FlashVIDQwen3VLMoeConfig",
    "FlashVIDQwen3VLMoeForConditionalGeneration",
    "FlashVIDQwen3VLMoeModel",
    "FlashVIDQwen3VLMoeProcessor",
    "Kept",
    "LayerPruning",
    "MediaLimits",
    "Signal",
    "Signals",
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
    "resizing_of",
    "setting",
]
__all__ += sorted({_class.__name__ for _family in FAMILIES for _class in _family.classes} - set(__all__))
