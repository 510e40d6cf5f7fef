"""Checks of settings, with errors that name the field, the value, the allowed range and the next step."""

import math
from collections.abc import Collection
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
        bounds = {"above": above, "at least": least, "at most": most}
        allowed = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
        kind = "an integer" if integer else "a number"
        raise ValueError(f"`{name}` is {value!r}: it must be {kind} {allowed}. Set `{name}` to such a value.")


def check_choice(name: str, value: Any, choices: Collection) -> None:
    """Raise a `ValueError` unless `value` is one of `choices`, type included (`True` is not 1)."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` is {value!r}: it must be one of {listed}. Set `{name}` to one of them.")
