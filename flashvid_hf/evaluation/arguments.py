"""Numbers in the command lines of scripts, with the bounds and the errors of the package's settings."""

import argparse
from collections.abc import Callable

from ..compression.validation import check_number


def number(
    *, above: float | None = None, least: float | None = None, most: float | None = None, integer: bool = False
) -> Callable[[str], float]:
    """The `type` of an argparse option that takes a number within these bounds, see `check_number`."""

    def read(text: str) -> float:
        try:
            value: float = int(text) if integer else float(text)
        except ValueError:
            kind = "an integer" if integer else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind}") from None
        try:
            check_number("value", value, above=above, least=least, most=most, integer=integer)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return read


COUNT = number(least=1, integer=True)  # of frames, tokens, rounds, ...
SHARE = number(above=0, most=1)  # of the video tokens
