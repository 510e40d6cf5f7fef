"""Writing the code of a class beside weights and processors."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

# What writes the code under "generate". Published code has none and copies its own files. The package generates the
# files from its modules, which lie in sub-folders, and puts its function here.
CODE_WRITERS: dict[str, Callable[[Any, str | os.PathLike], Any]] = {}


def save_code(published: Any, folder: str | os.PathLike) -> None:
    """Write the file that defines the class of an object, and the files that it imports, unless they lie there.

    Args:
        published: a model or a processor.
        folder: where to write; it exists.
    """
    module = sys.modules[type(published).__module__].__file__
    if module is None or not Path(module).parent.samefile(folder):
        CODE_WRITERS.get("generate", custom_object_save)(published, folder)
