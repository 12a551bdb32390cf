"""A watch over devices that needs no GPU: what our own files make says where, and moves only to an opening's device.

Models are opened on `cpu:0`, the processor by a name that nothing else uses. Within `Watched`, a call of torch made by a line of ours is
refused if

* it makes a tensor and names no device (`zeros`, `tensor`, `randn` …; what follows a given tensor, such as `zeros_like`, is fine),
* it moves a tensor to a device that is spelt there (`.to("cpu")`, `.cpu()`, `.cuda()`), and not the opening's or another tensor's,
* it turns a tensor into an array by itself: on a GPU only the one host copy, `compress.algorithms.tensors.to_host`, can.

Lines of ours are those of compress/ and evaluation/. Free are the one host copy and the packages of engines that run on processors alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import compress
from compress.catalogue import engine_names, find_engine
from compress.machine.devices import Opening

ROOT = Path(compress.__file__).parent.parent
DEVICE = "cpu:0"
HERE = Opening("float32", DEVICE)
FACTORIES = frozenset(
    [
        "arange",
        "as_tensor",
        "empty",
        "eye",
        "full",
        "linspace",
        "logspace",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "tensor",
        "zeros",
    ]
)
OWN = (ROOT / "compress", ROOT / "evaluation")
FREE = (
    ROOT / "compress" / "algorithms" / "tensors.py",
    *(ROOT / "compress" / "engines" / name for name in engine_names() if find_engine(name).devices == {"cpu"}),
)


class Watched(TorchFunctionMode):
    """Refuses what would go wrong on a GPU; `seen` counts the calls that were looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        place = _ours(sys._getframe(1))
        if place and (why := wrong(func, args, given)):
            raise AssertionError(f"{place}: {why}")
        self.seen += bool(place)
        return func(*args, **given)


def wrong(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What a call would do wrong on a GPU, or ""."""
    name = getattr(func, "__name__", "")
    if name in FACTORIES and getattr(torch, name, None) is func:
        return "" if kwargs.get("device") is not None else f"torch.{name} without a device"
    if func in (torch.Tensor.cpu, torch.Tensor.cuda):
        return f"a tensor goes to {name} by itself, and not through to_host"
    if func is torch.Tensor.numpy:
        return "a tensor becomes an array by itself, and not through to_host"
    if func is torch.Tensor.to:
        named = [one for one in (*args[1:], *kwargs.values()) if isinstance(one, str)]
        return f"a tensor goes to `{named[0]}`, which is spelt here" if named and named[0] != DEVICE else ""
    return ""


def _ours(frame: Any) -> str:
    """Where the call was made, if a line of ours made it."""
    while frame is not None and Path(frame.f_code.co_filename) == Path(__file__):
        frame = frame.f_back
    if frame is None:
        return ""
    file = Path(frame.f_code.co_filename)
    own = any(file.is_relative_to(folder) for folder in OWN) and not any(file.is_relative_to(free) for free in FREE)
    return f"{file.relative_to(ROOT)}:{frame.f_lineno}" if own else ""
