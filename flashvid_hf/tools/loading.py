"""A model and its pipeline by name, with the package's own classes: no remote code runs."""

from typing import Any

import torch
from transformers import Pipeline, pipeline

from ..families import find_family, load_processor
from ..pipeline_flashvid import TASK
from ..video_io import FETCHERS, read_video


def load_pipeline(model: str, *, device: str = "auto", dtype: str = "auto", **settings: Any) -> Pipeline:
    """The pipeline of a FlashVID folder, an upstream checkpoint or an original LLaVA checkpoint, which it compresses.

    Args:
        model: folder or Hub id.
        device: "auto" spreads the model over the GPUs, and takes the CPU where there is none; or one device, as
            torch names it.
        dtype: of the weights; "auto" is that of the checkpoint.
        settings: FlashVID's fields that differ from those of the checkpoint.

    Raises:
        ValueError: no family reads it, or a setting is out of range or not one of the family's.
    """
    family = find_family(model)
    for name in sorted(settings.keys() - family.config.method_fields):
        known = ", ".join(sorted(family.config.method_fields))
        raise ValueError(f"`{name}` is no field of {model!r}, a {family.config.model_type!r}: choose from {known}.")
    if device == "auto":
        device = "auto" if torch.cuda.is_available() else "cpu"
    loaded = family.generative_model.from_pretrained(model, dtype=dtype, device_map=device, **settings)
    return pipeline(TASK, model=loaded, processor=load_processor(model))


def check_video(video: str) -> None:
    """Read a frame of a local file, so that a wrong path is told before a model is loaded.

    Raises:
        ValueError: the file is missing, empty, damaged or not a video.
    """
    if video.partition(":")[0] not in FETCHERS:  # a URL would be fetched twice
        read_video(video, num_frames=1)
