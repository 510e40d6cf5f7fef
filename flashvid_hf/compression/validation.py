"""What a setting may be: a record for each setting, and checks.

The error of a check names the field, the value, the allowed range and a next step. The fields of a dataclass are its
settings. Each field states its default, meaning and range once, by `setting`. The checks, the fields of the models'
configurations and the tables of the model cards and of the README follow from these records.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    integer: bool = False,
) -> None:
    """Raise a `ValueError` unless `value` is a finite number within the bounds. A boolean is no number.

    Args:
        name: what the error calls the value.
        value: what is checked.
        above: the value must be larger than this.
        least: the value must be at least this.
        most: the value must be at most this.
        integer: the value must be an integer.
    """
    is_number = isinstance(value, Integral if integer else Real) and not isinstance(value, bool)
    fits = (
        is_number
        and math.isfinite(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )
    if not fits:
        allowed = " and ".join(_describe_bounds(above, least, most))
        kind = "an integer" if integer else "a number"
        raise ValueError(f"`{name}` is {value!r}: it must be {kind} {allowed}. Set `{name}` to such a value.")


def check_choice(name: str, value: Any, choices: Collection) -> None:
    """Raise a `ValueError` unless `value` is one of `choices`, type included (`True` is not 1)."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` is {value!r}: it must be one of {listed}. Set `{name}` to one of them.")


def _describe_bounds(above: float | None, least: float | None, most: float | None) -> list[str]:
    bounds = {"above": above, "at least": least, "at most": most}
    return [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]


@dataclass(frozen=True)
class Setting:
    """What a setting does and what it may be.

    Args:
        meaning: what the setting does, for tables in Markdown. "{layers}" stands for the number of layers.
        above: a number must be larger than this.
        least: a number must be at least this.
        most: a number must be at most this.
        integer: a number must be an integer.
        choices: the value must be one of these.
        optional: the value may be `None` too.
        words: what the value may be, in words, if no other field can say it. `check` then accepts every value, and the
            class that has the setting checks it.
    """

    meaning: str
    above: float | None = None
    least: float | None = None
    most: float | None = None
    integer: bool = False
    choices: tuple[str | bool, ...] = ()
    optional: bool = False
    words: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise a `ValueError` if the setting must not have this value. The error calls the setting `name`."""
        if self.words or (value is None and self.optional):
            return
        if self.choices:
            check_choice(name, value, self.choices)
        else:
            check_number(name, value, above=self.above, least=self.least, most=self.most, integer=self.integer)

    @property
    def allowed(self) -> str:
        """What the setting may be, in Markdown; values are written as JSON."""
        choices = [f"`{str(choice).lower()}`" for choice in self.choices]
        parts = [self.words] if self.words else choices or _describe_bounds(self.above, self.least, self.most)
        return ", ".join([*parts, *(["`null`"] if self.optional else [])])


def setting(default: Any, meaning: str, **allowed: Any) -> Any:
    """A field of a dataclass that is a setting. A subclass may give it another default by a plain assignment.

    Args:
        default: the default of the field.
        meaning: see `Setting`.
        allowed: the other fields of `Setting`.
    """
    return field(default=default, metadata={"setting": Setting(meaning, **allowed)})


def same_setting(owner: Any, name: str) -> Any:
    """A field that has the default, the meaning and the range of the field `name` of the dataclass `owner`."""
    (default,) = (field.default for field in fields(owner) if field.name == name)
    return field(default=default, metadata={"setting": settings_of(owner)[name]})


def settings_of(owner: Any) -> dict[str, Setting]:
    """The settings of a dataclass, by name, in the order of its fields.

    Args:
        owner: the class. A subclass that only changes a default keeps the meaning and the range.
    """
    found = {}
    for base in reversed(owner.__mro__):
        own = vars(base).get("__dataclass_fields__", {})
        found.update({name: field.metadata["setting"] for name, field in own.items() if "setting" in field.metadata})
    return found


def check_settings(owner: Any) -> None:
    """Raise a `ValueError` for the first setting outside of its range.

    Args:
        owner: an instance of a dataclass with settings.
    """
    for name, found in settings_of(type(owner)).items():
        found.check(name, getattr(owner, name))
