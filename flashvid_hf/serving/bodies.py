"""From the bytes of a request to its fields: JSON in which every value can be used."""

import json
import math
from collections import Counter
from typing import Any

from .kinds import FieldError, show, show_name


def parse_body(body: bytes, max_depth: int) -> dict[str, Any]:
    """The fields of a request.

    Args:
        body: JSON.
        max_depth: how many objects and lists may stand inside each other.

    Raises:
        ValueError: the body is no JSON or no object, or nests too deeply.
        FieldError: an object has a field twice; a number is not finite; a text is no Unicode.
    """
    try:
        fields = json.loads(body, object_pairs_hook=_unique)
    except FieldError:
        raise
    except RecursionError:
        raise ValueError(f"The body is no JSON that can be read: {_too_deep('it', max_depth)}") from None
    except ValueError as error:
        raise ValueError(f"The body is no JSON: {str(error)[:200]}.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"The body is {show(fields)}: it must be an object.")
    for name, value in fields.items():
        _check_text(name, show_name(name))
        _check(value, show_name(name), max_depth, max_depth - 1)
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        name = _printable(show_name(name))
        raise FieldError(name, f"`{name}` stands twice in one object: give it once.")
    return found


def _check(value: Any, name: str, max_depth: int, left: int) -> None:
    """Check a value, inside of which `left` objects and lists may stand inside each other."""
    if isinstance(value, str):
        _check_text(value, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError(name, f"`{name}` has the number {value}: a number must be finite. Send another one.")
    elif isinstance(value, int) and abs(value) >= 2**64:
        raise FieldError(
            name, f"`{name}` has an integer of {value.bit_length()} bits: 64 are the most. Send another one."
        )
    elif isinstance(value, (dict, list)):
        if not left:
            raise FieldError(name, _too_deep(f"`{name}`", max_depth))
        if isinstance(value, dict):
            for key in value:
                _check_text(key, name)
            value = value.values()
        for part in value:
            _check(part, name, max_depth, left - 1)


def _check_text(text: str, name: str) -> None:
    if not text.isascii() and _printable(text) != text:
        name = _printable(name)
        raise FieldError(name, f"`{name}` has half a character (such as \\ud800 alone): send whole ones.")


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _too_deep(what: str, max_depth: int) -> str:
    return (
        f"{what} has more than {max_depth} objects and lists inside each other, the most that this server takes "
        "(`--max-json-depth`). Nest less."
    )
