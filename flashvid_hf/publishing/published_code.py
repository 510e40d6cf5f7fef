"""The code of a Hub folder: at most six files for a family, generated from the package."""

import os
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from ..families import FAMILIES
from ..models.family import Family
from .bundle import Place, bundle

PACKAGE = Path(__file__).resolve().parents[1]
NAME = PACKAGE.name


def find_places(family: Family) -> dict[str, Place]:
    """The files of a family, and which modules go into each.

    In the folder of a family, `models/<folder>/`, modules that begin with "modeling_" go into the file of the models,
    and modules that begin with "processing_" into the file of the processor. All other modules of the folder that are
    needed go into the file of the configuration.
    """
    configuration, modeling = (_module_name(c).rpartition(".")[2] for c in (family.config, family.generative_model))
    return {
        "compression_flashvid": Place(
            "The compression of a video by FlashVID: DySeg, ADTS and TSTM (arXiv 2602.08024).",
            (
                "compression.compressed_video",
                "compression.segmentation",
                "compression.token_selection",
                "compression.token_merging",
                "compression.compress_video",
                "compression.*",
                "methods.compression_method",
                "methods.flashvid",
                "methods.registry",
            ),
        ),
        f"processing_flashvid_{family.name}": Place(
            f"The processor of {family.title} with FlashVID.", ("hub.processing_flashvid", "models.*.processing_*")
        ),
        modeling: Place(f"The models of {family.title} with FlashVID.", ("models.*.modeling_*",)),
        configuration: Place(
            f"The configuration of {family.title} with FlashVID.",
            (
                "models.configuration",
                "models.*.configuration_*",
                "models.*.*",
                "hub.weightless",
                "hub.code_writer",
            ),
        ),
        "pipeline_flashvid": Place(
            "The pipeline `video-text-to-text`: videos and questions in, answers out.", ("video.*",)
        ),
        "modeling_flashvid": Place("What the models of all families share.", ("models.*", "hub.*")),
    }


@cache
def published_files(family: Family) -> dict[str, str]:
    """The text of every file of code in a folder of this family, by its name.

    Raises:
        BundleError: the package has a form that cannot be published.
    """
    classes = (family.generative_model, family.processor)
    return bundle(PACKAGE, map(_module_name, classes), find_places(family), find_origin())


def find_origin() -> str:
    """The name and version of the package, as the head of every published file states them."""
    return f"{NAME} {version('flashvid-hf')}"


def write_code(published: Any, folder: str | os.PathLike) -> None:
    """Write the file that defines a class, and the files that it imports.

    Args:
        published: one of the classes of a family, or an object of one. The code of any other class, such as your own
            subclass, is copied in the way of transformers.
        folder: an existing folder to write to.
    """
    published_class = published if isinstance(published, type) else type(published)
    if published_class.__module__.partition(".")[0] != NAME:
        custom_object_save(published, folder)
        return
    family = next(family for family in FAMILIES if published_class in family.classes)
    files = published_files(family)
    waiting, written = [f"{published_class.__module__.rpartition('.')[2]}.py"], set()
    while waiting:
        name = waiting.pop()
        if name not in written:
            written.add(name)
            Path(folder, name).write_text(files[name], encoding="utf-8")
            waiting += [other for other in files if f"\nfrom .{other.removesuffix('.py')} import " in files[name]]


def _module_name(published_class: type) -> str:
    """The module of one of the package's classes, as a dotted name without the package."""
    return sys.modules[published_class.__module__].__name__.removeprefix(f"{NAME}.")
