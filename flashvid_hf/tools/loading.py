"""A model and its pipeline by name, with the package's own classes: no remote code runs."""

from typing import Any

import torch
from transformers import Pipeline, pipeline

from ..families import find_family, load_processor
from ..pipeline_flashvid import TASK


def load_pipeline(model: str, *, device: str = "auto", dtype: str = "auto", **settings: Any) -> Pipeline:
    """The pipeline of a FlashVID folder, an upstream checkpoint or an original LLaVA checkpoint, which it compresses.

    Args:
        model: folder or Hub id.
        device: "auto" spreads the model over the GPUs, and takes the CPU where there is none; or one device, as
            torch names it.
        dtype: of the weights; "auto" is that of the checkpoint.
        settings: FlashVID's fields that differ from those of the checkpoint.

    Raises:
        ValueError: no family reads it, or a setting is out of range.
    """
    if device == "auto":
        device = "auto" if torch.cuda.is_available() else "cpu"
    loaded = find_family(model).generative_model.from_pretrained(model, dtype=dtype, device_map=device, **settings)
    return pipeline(TASK, model=loaded, processor=load_processor(model))
