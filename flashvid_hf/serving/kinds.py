"""What the values of a request may be, and the error for those that are something else.

    Record("an object with a `name`", {"name": TEXT}, required=("name",)).check("tool", {"name": 3})
    # FieldError: `tool.name` is 3: it must be a string.

A field whose value is null counts as left out, as in OpenAI's clients.
"""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..video.sources import hide_user_of

_NAME_CHARACTERS = 60  # of a name in an error; a client may send a name of any length


class FieldError(ValueError):
    """A field of a request is invalid.

    Args:
        param: the field, such as "messages[0].role"; "param" of OpenAI's errors.
        message: what is wrong with it.
        status: of the reply.
    """

    def __init__(self, param: str, message: str, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


class _Shortened(reprlib.Repr):
    """`repr`, but short and fast for values of any size, and without the users in URLs."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 3, 100

    def repr_str(self, text: str, level: int) -> str:
        return super().repr_str(hide_user_of(text), level)


_shortened = _Shortened()


def show(value: Any) -> str:
    """A value in an error: its beginning and end if it is long."""
    return _shortened.repr(value)


def show_name(name: str) -> str:
    """A name from a request in an error: its beginning if it is long, and without the user of a URL."""
    name = hide_user_of(name)
    return name if len(name) <= _NAME_CHARACTERS else f"{name[:_NAME_CHARACTERS]}..."


def wrong(path: str, value: Any, words: str) -> FieldError:
    """The error for a value that is not what it must be."""
    return FieldError(path, f"`{path}` is {show(value)}: it must be {words}.")


class Kind(Protocol):
    """What a value may be."""

    @property
    def words(self) -> str:
        """What it must be, in words."""

    def check(self, path: str, value: Any) -> None:
        """Raise a `FieldError` unless the value is of this kind. The error calls it `path`."""


@dataclass(frozen=True)
class Value:
    """A value that a function accepts."""

    words: str
    fits: Callable[[Any], bool]

    def check(self, path: str, value: Any) -> None:
        """See `Kind`."""
        if not self.fits(value):
            raise wrong(path, value, self.words)


@dataclass(frozen=True)
class Items:
    """A list of values of one kind."""

    words: str
    kind: Kind

    def check(self, path: str, value: Any) -> None:
        """See `Kind`."""
        if not isinstance(value, list):
            raise wrong(path, value, self.words)
        for place, item in enumerate(value):
            self.kind.check(f"{path}[{place}]", item)


@dataclass(frozen=True)
class Record:
    """An object with known fields; others are refused by name."""

    words: str
    fields: Mapping[str, Kind] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def check(self, path: str, value: Any) -> None:
        """See `Kind`."""
        if not isinstance(value, dict) or any(name not in value for name in self.required):
            raise wrong(path, value, self.words)
        for name, content in value.items():
            place = f"{path}.{show_name(name)}"
            if content is None and name not in self.required:
                continue
            if name not in self.fields:
                known = ", ".join(self.fields)
                raise FieldError(
                    place,
                    f"`{place}` is {show(content)}: no such field is known. Choose from {known}, or leave it out.",
                )
            self.fields[name].check(place, content)


@dataclass(frozen=True)
class Either:
    """Values of several types, each with its kind."""

    words: str
    kinds: Mapping[type, Kind]

    def check(self, path: str, value: Any) -> None:
        """See `Kind`."""
        if type(value) not in self.kinds:
            raise wrong(path, value, self.words)
        self.kinds[type(value)].check(path, value)


def is_integer(value: Any) -> bool:
    """Whether it is an integer; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; a boolean is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def number(words: str, fits: Callable[[Any], bool] = lambda _: True) -> Value:
    """Finite numbers that a function accepts."""
    return Value(words, lambda value: is_number(value) and fits(value))


def integer(least: int, most: int = 2**63 - 1) -> Value:
    """Integers from `least` to `most`."""
    words = f"an integer from {least} to {most}" if most < 2**63 - 1 else f"an integer >= {least}"
    return Value(words, lambda value: is_integer(value) and least <= value <= most)


def choice(*choices: str) -> Value:
    """One of these texts."""
    return Value(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


TEXT = Value("a string", lambda value: isinstance(value, str))
NAME = Value("a string that is not empty", lambda value: isinstance(value, str) and bool(value))
FLAG = Value("true or false", lambda value: isinstance(value, bool))
OBJECT = Value("an object", lambda value: isinstance(value, dict))
LIST = Value("a list", lambda value: isinstance(value, list))
LABEL = Value("anything", lambda _: True)
