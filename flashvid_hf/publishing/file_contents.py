"""Whether the content of a file of a model's folder is of the kind that its name says.

    find_content_fault(Path("build/flashvid/model.safetensors"))  # None, or "is no file of safetensors (...): ..."

Of weights only the header is read, of pictures and videos the first bytes. What is right in form is not judged further.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_POINTER = re.compile(rb"(\xef\xbb\xbf)?\s*version https://(git-lfs|hawser)\.github\.com/spec/")

# How pictures and videos begin.
_BEGINNINGS = {
    ".png": rb"\x89PNG\r\n\x1a\n",
    ".jpg": rb"\xff\xd8\xff",
    ".jpeg": rb"\xff\xd8\xff",
    ".gif": rb"GIF8[79]a",
    ".webp": rb"RIFF.{4}WEBP",
    ".mp4": rb".{4}ftyp",
}
# A vocabulary of SentencePiece or of tiktoken, which have no common beginning.
_NOT_JUDGED = "tokenizer.model"


def find_content_fault(file: Path) -> str | None:
    """What is wrong with the content of a file that `folder_files` allows by its name, and the next step.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        beginning = opened.read(64)
    if _POINTER.match(beginning):
        return (
            "is a pointer of Git LFS in place of the file: run `git lfs pull` where you cloned the repository, or "
            "download the file again"
        )
    if file.suffix == ".safetensors":
        return _judge_weights(file)
    if file.suffix in _BEGINNINGS:
        if re.match(_BEGINNINGS[file.suffix], beginning, re.DOTALL):
            return None
        return f"does not begin as `{file.suffix}` files do: save it in that format, or remove it"
    return None if file.name == _NOT_JUDGED else _judge_text(file)


def _judge_weights(file: Path) -> str | None:
    try:
        # Only the header is read, and compared with the size of the file. "pt" would claim memory for the whole file.
        with safe_open(file, "np") as weights:
            is_empty = not weights.keys()
    except SafetensorError as error:
        # The reason can quote names of tensors, which can have any length and any characters.
        reason = ascii(str(error).removeprefix("Error while deserializing header: ")[:200])[1:-1]
        return f"is no file of safetensors ({reason}): save the weights with `save_pretrained`, or download them again"
    return "holds no weights: save them with `save_pretrained`, or remove the file" if is_empty else None


def _judge_text(file: Path) -> str | None:
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is no text in UTF-8 (byte {error.start:,} is 0x{error.object[error.start]:02x}): save it in UTF-8"
    if "\0" in text:
        return f"is no text (character {text.index(chr(0)):,} is NUL): write it as text in UTF-8"
    if file.suffix == ".json":
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:  # RecursionError: too many brackets
            return f"is no JSON ({error}): correct it"
        if file.name.endswith(".safetensors.index.json"):
            return _judge_index(file, content)
    return None


def _judge_index(file: Path, content: Any) -> str | None:
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        return "has no `weight_map`: save the weights with `save_pretrained`"
    for shard in sorted(set(map(str, shards.values()))):
        if Path(shard).name != shard or Path(shard).suffix != ".safetensors" or not (file.parent / shard).is_file():
            return (
                f"names the weights {ascii(shard[:100])}, which the folder does not have: add them, or save them again"
            )
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
