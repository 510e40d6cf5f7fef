"""Hooks on modules. Several models may share a module, so a hook is registered only once."""

from collections.abc import Callable

from torch import nn


def add_pre_hook(module: nn.Module, hook: Callable) -> None:
    """Register a forward pre-hook that takes keyword arguments, unless the module has it already."""
    if hook not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(hook, with_kwargs=True)


def add_hook(module: nn.Module, hook: Callable) -> None:
    """Register a forward hook that takes keyword arguments, unless the module has it already."""
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook, with_kwargs=True)
