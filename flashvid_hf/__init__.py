from .compression import CompressedVideo, CompressionConfig, compress_video, exact_num_tokens  # noqa: F401
