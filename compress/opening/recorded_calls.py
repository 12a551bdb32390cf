"""Calls of a pipeline to its parts while it generates: listened to, and kept as copies that it cannot write into later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from compress.algorithms.forward_hooks import standing_in
from compress.engines.module import EngineModule, arguments_of
from compress.opening.denoising import denoising_of
from compress.opening.models import Call

T = TypeVar("T")
Recorded = Callable[[tuple[Any, ...], dict[str, Any]], None]


@contextmanager
def listening(module: torch.nn.Module, function: str, recorded: Recorded) -> Iterator[None]:
    """Within: tells `recorded` of every call of a module's method that is computed."""
    if (denoising := denoising_of(module)) is not None:  # which tells what is really computed
        denoising.listeners.append(recorded)
        try:
            yield
        finally:
            denoising.listeners.remove(recorded)
        return
    real = getattr(module, function)

    def listener(*args: object, **kwargs: object) -> object:
        recorded(args, kwargs)
        return real(*args, **kwargs)

    with standing_in(module, function, listener):
        yield


@contextmanager
def listening_before(module: torch.nn.Module, recorded: Recorded) -> Iterator[None]:
    """Within: tells `recorded` of every call of a module, whatever function its `forward` is at the time."""

    def listener(called: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded(args, kwargs)

    handle = module.register_forward_pre_hook(listener, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def by_name(module: torch.nn.Module, function: str, keep: Callable[[Call], T], found: list[T]) -> Recorded:
    """What adds to `found` what `keep` makes of each call of a module's method, its arguments by name."""
    names = module.arguments if isinstance(module, EngineModule) else arguments_of(getattr(type(module), function))
    return lambda args, kwargs: found.append(keep({**dict(zip(names, args, strict=False)), **kwargs}))


def copies() -> Callable[[str, Call], tuple[str, Call]]:
    """What copies calls to components. A tensor that comes again as it was, as a prompt's embedding does at every step, is copied once."""
    seen: dict[str, torch.Tensor] = {}
    return lambda name, given: (name, _own(given, name, seen))


def _own(value: object, name: str, seen: dict[str, torch.Tensor]) -> Any:
    """A copy of its own, or the last one of its name where that is equal."""
    if isinstance(value, dict):
        return {key: _own(one, f"{name}.{key}", seen) for key, one in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    last = seen.get(name)
    if last is None or last.dtype != value.dtype or last.shape != value.shape or not torch.equal(last, value):
        last = seen[name] = value.detach().clone()
    return last
