"""Hearing what a module's layers are given and give: the one place where pare sets hooks and takes them away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

# What is reported of a layer after it ran: its name, its arguments in order and by name, and its output.
Hear = Callable[[str, tuple[Any, ...], Mapping[str, Any], Any], None]


@contextmanager
def hearing(module: nn.Module, names: Iterable[str], hear: Hear) -> Iterator[None]:
    """Within: `hear` is reported of every call to the named layers of a module."""
    layers = {name: module.get_submodule(name) for name in names}  # all of them, before any has a hook
    handles = [
        layer.register_forward_hook(partial(_tell, hear, name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def standing_in(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within: a function stands where a method of a module or a scheduler stood: its class's own, or what was hooked in its place."""
    before = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)


@contextmanager
def passing_over(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Within: each of the named layers gives what it is given, its first argument or `hidden_states`, as the first part of its output."""

    def give_back(layer: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
        given = given_to(args, named)
        return type(output)((given, *output[1:])) if isinstance(output, tuple | list) else given

    layers = [module.get_submodule(name) for name in names]
    handles = [layer.register_forward_hook(give_back, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def given_to(args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The stream that a block is given: its first argument, or `hidden_states`."""
    return args[0] if args else named["hidden_states"]


def stream_of(before: object, output: object, otherwise: int = -1) -> torch.Tensor:
    """Of what a block gives, the stream it was given: some give the text's or their attention beside it. Where none has its shape, the one
    at `otherwise`."""
    given = [t for t in (output if isinstance(output, tuple | list) else (output,)) if torch.is_tensor(t)]
    same = [t for t in given if torch.is_tensor(before) and t.shape == before.shape]
    return same[-1] if same else given[otherwise]


def _tell(
    hear: Hear, name: str, layer: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: object
) -> None:
    hear(name, args, named, output)
