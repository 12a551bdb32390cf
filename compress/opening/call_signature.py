"""What a call gives and gets, as graphs see it: tensors that may change from call to call, and all else, which may not."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from transformers import StaticCache

PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.Size)


class Untaken(Exception):
    """A call that no graph takes, and why."""


def spelt(value: Any, tensors: list[torch.Tensor], name: str = "a value") -> Hashable:
    """What of a value must be the same for one graph to answer both calls; its tensors are appended to `tensors`, in order.

    Of a tensor that is its shape, type and layout; a cache of fixed size is written in place, and must be the very same.

    Raises:
        Untaken: it holds something that may change unseen.
    """
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return (value.shape, value.dtype, value.stride() if value.dim() > 3 else None)
    if value is None or isinstance(value, PLAIN):
        return (type(value), value)  # the type too: 1 == 1.0 == True
    if type(value) is dict:
        return (dict, *((key, spelt(value[key], tensors, f"{name}.{key}")) for key in sorted(value, key=str)))
    if type(value) in (list, tuple):
        return (type(value), *(spelt(one, tensors, f"{name}[{place}]") for place, one in enumerate(value)))
    if isinstance(value, StaticCache):
        places = [layer.keys.data_ptr() for layer in value.layers if layer.is_initialized]
        if len(places) == len(value.layers):
            return (StaticCache, id(value), *places)
    raise Untaken(f"`{name}` is a {type(value).__name__}, which may change unseen")


def refilled(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """A value as `spelt` has seen it, with other tensors in the places of its own."""
    if type(value) is dict:  # in the order of `spelt`
        found = {key: refilled(value[key], tensors) for key in sorted(value, key=str)}
        return {key: found[key] for key in value}
    if type(value) in (list, tuple):
        return type(value)(refilled(one, tensors) for one in value)
    return next(tensors) if isinstance(value, torch.Tensor) else value


def weakly(value: Any) -> Any:
    """What a model gives, without keeping its cache in memory: `copied` gives that back."""
    return _each(value, lambda leaf: weakref.ref(leaf) if isinstance(leaf, StaticCache) else leaf)


def copied(value: Any, device: torch.device) -> Any:
    """What a model gives, as tensors of the caller's own: in a library's record, a tuple, or alone.

    Raises:
        Untaken: it holds a tensor on another device, or something that is neither a tensor nor a plain value.
    """
    return _each(value, lambda leaf: _copied(leaf, device))


def _copied(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, torch.Tensor):
        if leaf.device.type != device.type:
            raise Untaken(f"it gives a tensor on {leaf.device.type}")
        return leaf.clone()
    if isinstance(leaf, weakref.ref):
        return leaf()
    if leaf is None or isinstance(leaf, (*PLAIN, StaticCache)):
        return leaf
    raise Untaken(f"it gives a {type(leaf).__name__}")


def _each(value: Any, made: Callable[[Any], Any]) -> Any:
    """The same structure with `made` of each leaf; a library's record stays one."""
    if isinstance(value, dict):
        found = {key: _each(one, made) for key, one in value.items()}
        return _record(value, found) if hasattr(value, "__dataclass_fields__") else found
    if type(value) in (list, tuple):
        return type(value)(_each(one, made) for one in value)
    return made(value)


def _record(like: dict[str, Any], found: dict[str, Any]) -> Any:
    """A library's record with other values, as its class leaves one: its own `__init__` looks at each field several times, which takes as
    long as the rest of a replay does in Python."""
    if not isinstance(like, OrderedDict):
        return type(like)(**found)
    made = type(like).__new__(type(like))
    for key, value in found.items():
        OrderedDict.__setitem__(made, key, value)
    vars(made).update(vars(like), **found)
    return made
