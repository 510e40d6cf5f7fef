"""Loading a model and its pipeline by name, with the classes of the package: no remote code runs."""

from typing import Any

from transformers import Pipeline, PreTrainedModel, ProcessorMixin, pipeline

from .families import find_family, load_processor
from .video.pipeline_flashvid import TASK
from .video.reading import FETCHERS, read_video


def load_model(
    name: str, *, device: str = "auto", revision: str | None = None, **settings: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The FlashVID model and the processor of any checkpoint that `find_family` knows.

    Args:
        name: folder or Hub id.
        device: "auto" spreads the model over the accelerators, or uses the CPU if there is none. Otherwise the torch
            name of one device, or the index of an accelerator.
        revision: branch, tag or commit of a model on the Hub.
        settings: further arguments of `from_pretrained`.

    Raises:
        ValueError: no family reads the checkpoint, or a setting is out of range.
    """
    hub = {} if revision is None else {"revision": revision}
    device_map = int(device) if device.isdigit() else device
    model = find_family(name, **hub).generative_model.from_pretrained(name, device_map=device_map, **hub, **settings)
    return model, load_processor(name, **hub)


def load_pipeline(model: str, *, device: str = "auto", dtype: str = "auto", **settings: Any) -> Pipeline:
    """A pipeline that compresses videos, of a FlashVID folder, an upstream checkpoint or an original LLaVA checkpoint.

    Args:
        model: folder or Hub id.
        device: see `load_model`.
        dtype: name of a torch dtype, or "auto" for that of the checkpoint.
        settings: FlashVID's fields that differ from those of the checkpoint.

    Raises:
        ValueError: no family reads the checkpoint, or a setting is out of range or is no field of the family.
    """
    family = find_family(model)
    for name in sorted(settings.keys() - family.config.method_fields):
        known = ", ".join(sorted(family.config.method_fields))
        raise ValueError(f"`{name}` is no field of {model!r}, a {family.config.model_type!r}: choose from {known}.")
    loaded, processor = load_model(model, device=device, dtype=dtype, **settings)
    return pipeline(TASK, model=loaded, processor=processor)


def check_video(video: str) -> None:
    """Read one frame of a local file, so that a wrong path is an error before a model is loaded.

    Raises:
        ValueError: the file is missing, empty, damaged or not a video.
    """
    if video.partition(":")[0] not in FETCHERS:  # a URL would be downloaded twice
        read_video(video, num_frames=1)
