"""The compression methods by name.

Published code contains only FlashVID. The package adds the other methods, and users add theirs by `register_method`.
"""

import inspect
from typing import Any

from ..compression.validation import check_choice
from .compression_method import SHARED_SETTINGS, SIGNAL_KINDS, CompressionMethod, Signal
from .flashvid import FlashVID

METHODS: dict[str, type[CompressionMethod]] = {}


def register_method(method: type[CompressionMethod]) -> type[CompressionMethod]:
    """Register a method, so that `compression_method` can name it. May be used as a decorator.

    Args:
        method: the class of the method.

    Returns:
        The class itself.

    Raises:
        ValueError: the class is no dataclass that derives from `CompressionMethod`; its name is missing or taken; its
            `signals` are no tuple of different `Signal`s.
    """
    is_method = isinstance(method, type) and issubclass(method, CompressionMethod)
    if not is_method or "__dataclass_fields__" not in vars(method):  # not decorated: its own fields would be ignored
        raise ValueError(
            f"`method` is {method!r}: it must be a class that derives from `CompressionMethod`. Derive from it, and "
            "decorate the class with `@dataclass(frozen=True, kw_only=True)`."
        )
    name = getattr(method, "name", None)
    if not isinstance(name, str) or METHODS.get(name, method) is not method:
        raise ValueError(
            f"`name` of `{method.__name__}` is {name!r}: it must be a string that no other method has; taken are "
            f"{', '.join(map(repr, METHODS))}. Choose another."
        )
    _check_signals(method)
    METHODS[name] = method
    return method


def _check_signals(method: type[CompressionMethod]) -> None:
    """Raise a `ValueError` unless `signals` are right. Methods in the older form, without signals, get advice."""
    advice = "`signals.attention` is the attention in the last layer. See `CompressionMethod`."
    if hasattr(method, "needs_attention"):
        raise ValueError(
            f"`needs_attention` of `{method.__name__}` is {method.needs_attention!r}: a method now names what it wants "
            f"to know of the vision tower. Write `signals = ()` for nothing; by default {advice}"
        )
    for function in ("compress", "keep", "score"):
        if "attention" in inspect.signature(getattr(method, function, lambda: None)).parameters:
            raise ValueError(
                f"`{function}` of `{method.__name__}` takes `attention`: it is called with `signals` now. Rename the "
                f"argument; {advice}"
            )
    signals = method.signals
    are_signals = isinstance(signals, tuple) and all(isinstance(signal, Signal) for signal in signals)
    if not are_signals or len(set(signals)) < len(signals):
        raise ValueError(
            f"`signals` of `{method.__name__}` is {signals!r}: it must be a tuple of `Signal`, each once. Write "
            '`signals = (Signal("keys"),)` for one, `signals = ()` for nothing.'
        )
    for signal in signals:
        check_choice("kind", signal.kind, SIGNAL_KINDS)
        if type(signal.layer) is not int:
            raise ValueError(
                f"`layer` of {signal!r} is {signal.layer!r}: it must be an integer, 0 for the first layer of the "
                "vision tower, -1 for the one whose output makes the features. Set `layer` to such a value."
            )


register_method(FlashVID)  # the package registers the others, see `methods/__init__.py`


def available_methods() -> tuple[str, ...]:
    """The names that `compression_method` takes."""
    return tuple(METHODS)


def make_method(name: str, **settings: Any) -> CompressionMethod:
    """Make a method with its settings.

    Args:
        name: one of `available_methods()`.
        settings: settings of the method, its own and those of `CompressionMethod`. Default: the method's defaults.

    Raises:
        ValueError: there is no such method, the method has no such setting, or a setting is outside of its range.
    """
    check_choice("compression_method", name, tuple(METHODS))
    known = METHODS[name].settings()
    for setting in sorted(settings.keys() - known.keys() - SHARED_SETTINGS):
        raise ValueError(
            f"`method_settings` has {setting!r}: the method {name!r} has "
            f"{', '.join(map(repr, known)) or 'no settings'}. Leave it out, or choose another `compression_method`."
        )
    return METHODS[name](**settings)
