"""Writing the code of a model or processor into the folder in which it is saved."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

# The function that writes the code, under the key "generate". The package adds one that generates the files from its
# modules, which lie in sub-folders. In published code this stays empty, and the published files are copied.
CODE_WRITERS: dict[str, Callable[[Any, str | os.PathLike], Any]] = {}


def save_code(published: Any, folder: str | os.PathLike) -> None:
    """Write the file that defines an object's class and the files that it imports, unless `folder` has them.

    Args:
        published: a model or a processor.
        folder: an existing folder to write to.
    """
    file = getattr(sys.modules[type(published).__module__], "__file__", None)  # a notebook's classes have none
    if file is None or not Path(file).parent.samefile(folder):
        CODE_WRITERS.get("generate", custom_object_save)(published, folder)
