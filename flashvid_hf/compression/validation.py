"""What a setting may be: one record each, and checks whose errors name the field, the value, the range and a next step.

The fields of a dataclass are its settings. Each states its default, its meaning and its range once, by `setting`. The
checks, the fields of the models' configurations, the tables of the model cards and that of the README follow from it.
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
    """Raise a `ValueError` unless `value` is a finite number (an integer if asked for) within the bounds.

    Args:
        above: the value must be larger than this.
        least, most: the value must be at least and at most this.
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
        meaning: what it does, for tables in Markdown. "{layers}" stands for the number of layers.
        above: a number must be larger than this.
        least, most: a number must be at least and at most this.
        integer: a number must be an integer.
        choices: it must be one of these.
        optional: it may be `None` too.
        words: what it may be, where none of the above can say it. Then its owner checks it, and `check` does not.
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
        """Raise a `ValueError` if the setting called `name` must not have this value."""
        if self.words or (value is None and self.optional):
            return
        if self.choices:
            check_choice(name, value, self.choices)
        else:
            check_number(name, value, above=self.above, least=self.least, most=self.most, integer=self.integer)

    @property
    def allowed(self) -> str:
        """What it may be, in Markdown; values are written as JSON."""
        choices = [f"`{str(choice).lower()}`" for choice in self.choices]
        parts = [self.words] if self.words else choices or _describe_bounds(self.above, self.least, self.most)
        return ", ".join([*parts, *(["`null`"] if self.optional else [])])


def setting(default: Any, meaning: str, **allowed: Any) -> Any:
    """A field of a dataclass that is a setting. A subclass may give it another default by a plain assignment.

    Args:
        default: its default.
        meaning, allowed: see `Setting`.
    """
    return field(default=default, metadata={"setting": Setting(meaning, **allowed)})


def same_setting(owner: Any, name: str) -> Any:
    """A field that has the default, the meaning and the range of the field `name` of the dataclass `owner`."""
    (default,) = (field.default for field in fields(owner) if field.name == name)
    return field(default=default, metadata={"setting": settings_of(owner)[name]})


def settings_of(owner: Any) -> dict[str, Setting]:
    """The settings of a dataclass by name, in the order of its fields."""
    found = {}
    for base in reversed(owner.__mro__):  # a subclass that only changes a default keeps the range
        own = vars(base).get("__dataclass_fields__", {})
        found.update({name: field.metadata["setting"] for name, field in own.items() if "setting" in field.metadata})
    return found


def check_settings(owner: Any) -> None:
    """Raise a `ValueError` for the first setting of a dataclass's instance that is outside of its range."""
    for name, found in settings_of(type(owner)).items():
        found.check(name, getattr(owner, name))
