"""A device that is none of the host's, on a machine that has only the host: what is left behind, or goes astray, fails.

The device is the processor under another spelling, `cpu:0`. Storages that were made there or moved there are remembered; all
others lie on the host. Within `elsewhere()`, models are opened with `Opening(device=AWAY)`, and this is the law:

1. A tensor, a module or a generator that one of our own files makes says where; `*_like` and `new_*` follow what they are given.
2. One of our own files moves a tensor to the opening's device, or through `to_host` and `moved` to the host, and by no other way.
3. As on a GPU, nobody's operation takes tensors from both sides, unless one is a single number or an index; and what lies on the
   device gives no numpy array, unless a library asks for a copy by `force`.

Ours is a call whose innermost frame outside torch lies in `compress/` or `evaluation/`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

AWAY, HOST = "cpu:0", "cpu"
ROOT = Path(__file__).parents[1]
OURS = (f"{ROOT / 'compress'}/", f"{ROOT / 'evaluation'}/")
UNSEEN = (f"{Path(torch.__file__).parent}/", __file__)
PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
WAY_BACK = ("compress/opening/tensors.py", ("to_host", "moved"))

MAKERS = frozenset(
    getattr(torch, name)
    for name in (
        *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones"),
        *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
    )
)
ARRAYS = (torch.Tensor.numpy, torch.Tensor.__array__)
WHERE = torch.Tensor.device.__get__  # type: ignore[attr-defined]
# Operations that copy from one side to the other, or take indices from the host.
CROSSING = ("copy_", "_to_copy", "_foreach_copy_", "set_", "index", "index_put_", "_index_put_impl_", "_unsafe_index")


class WrongDevice(AssertionError):
    """Something is made nowhere in particular, goes astray or is left behind."""


class Storages:
    """Which memory lies on the device. An address is not given to another storage while a weak reference is held."""

    def __init__(self) -> None:
        self._away: dict[int, StorageWeakRef] = {}

    def mark(self, found: Any, away: bool) -> None:
        for tensor in tensors_in(found):
            held = tensor.untyped_storage()
            self._away.pop(held._cdata, None)
            if away:
                self._away[held._cdata] = StorageWeakRef(held)

    def has(self, tensor: torch.Tensor) -> bool:
        return _in_memory(tensor) and tensor.untyped_storage()._cdata in self._away


class Operations(TorchDispatchMode):
    """Every operation, whoever calls it: what it makes lies where what it was given lies, or where it was told."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages
        self.following = (
            False  # within a function of torch's, or a backward pass, that was given something on the device
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        given = [t for t in tensors_in((args, named)) if _in_memory(t)]
        sides = [self.storages.has(t) for t in given]
        name = func.overloadpacket.__name__
        if len({side for side, t in zip(sides, given, strict=True) if t.ndim or side}) > 1 and name not in CROSSING:
            raise WrongDevice(f"{name} is given tensors of both sides{_at(_frame())}")
        known = {t.untyped_storage()._cdata for t in given}
        made = func(*args, **named)
        told = named.get("device")
        away = self.following or (any(sides) if told is None else _is_away(told))
        fresh = [t for t in tensors_in(made) if _in_memory(t) and t.untyped_storage()._cdata not in known]
        self.storages.mark(fresh, away)
        return made


class Calls(TorchFunctionMode):
    """Every function of torch's that Python calls: where tensors say that they lie, and what our own files may do."""

    def __init__(self, storages: Storages, operations: Operations) -> None:
        super().__init__()
        self.storages, self.operations = storages, operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func == WHERE:
            return torch.device(AWAY) if self.storages.has(args[0]) else func(*args)
        away = any(self.storages.has(t) for t in tensors_in((args, named)))
        if func in ARRAYS and away and not (named.get("force") and not _is_ours(_frame())):
            raise WrongDevice(f"a tensor on the device is read as an array{_at(_frame())}")
        if func in MAKERS:
            return self._made(func, args, named)
        if func is torch.Tensor.to or func is torch.Tensor.cpu:
            return self._moved(func, args, named, away)
        return self._followed(func, args, named, away)

    def _made(self, func: Any, args: Any, named: dict[str, Any]) -> Any:
        told = named.get("device")
        if told is None and _is_ours(_frame()):
            raise WrongDevice(f"torch.{func.__name__} makes a tensor without a device{_at(_frame())}")
        made = func(*args, **named)
        if told is not None and torch.device(told).type == HOST:
            self.storages.mark(made, _is_away(told))
        return made

    def _moved(self, func: Any, args: Any, named: dict[str, Any], away: bool) -> Any:
        target = HOST if func is torch.Tensor.cpu else _target(args, named, self.storages)
        if target is None or torch.device(target).type != HOST or _inside_torch():
            return self._followed(func, args, named, away)
        moved = func(*args, **named)
        if _is_away(target) or not away:
            return moved
        frame = _frame()
        if _is_ours(frame) and not _is_way_back(frame):
            raise WrongDevice(f"a tensor is moved to the host, and not by to_host{_at(frame)}")
        moved = moved.clone()
        self.storages.mark(moved, False)
        return moved

    def _followed(self, func: Any, args: Any, named: dict[str, Any], away: bool) -> Any:
        before = self.operations.following
        self.operations.following = before or away
        try:
            return func(*args, **named)
        finally:
            self.operations.following = before


class _Kind(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=_Kind):
    """Torch's own, which our files make only with a device."""

    def __new__(cls, device: Any = None) -> Generator:
        if device is None and _is_ours(_frame()):
            raise WrongDevice(f"torch.Generator is made without a device{_at(_frame())}")
        return super().__new__(cls, device or HOST)


@contextmanager
def elsewhere() -> Iterator[Storages]:
    """Within: `Opening(device=AWAY)` opens models elsewhere than on the host, and whoever breaks the law fails."""
    storages = Storages()
    operations = Operations(storages)
    with mock.patch.object(torch, "Generator", Generator), operations, Calls(storages, operations):
        yield storages


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors among a call's arguments or results."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)


def _in_memory(tensor: torch.Tensor) -> bool:
    return tensor.device.type == HOST and tensor.layout is torch.strided and type(tensor) in PLAIN


def _is_away(device: Any) -> bool:
    return torch.device(device) == torch.device(AWAY)


def _target(args: Any, named: Mapping[str, Any], storages: Storages) -> Any:
    """The device that `Tensor.to` is given, or None."""
    for value in (*args[1:], *named.values()):
        if isinstance(value, torch.Tensor):
            return AWAY if storages.has(value) else value.device
        if isinstance(value, (str, torch.device)):
            return value
    return None


def _frame() -> FrameType:
    """The innermost frame outside torch and this file."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(UNSEEN):
        frame = frame.f_back
    return frame


def _inside_torch() -> bool:
    """Whether torch moves something for its own sake, to the device that it believes it is on; `Module.to` is asked to."""
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    file = frame.f_code.co_filename if frame else ""
    return file.startswith(UNSEEN) and not file.endswith("nn/modules/module.py")


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(OURS)


def _is_way_back(frame: FrameType) -> bool:
    return frame.f_code.co_filename.endswith(WAY_BACK[0]) and frame.f_code.co_name in WAY_BACK[1]


def _at(frame: FrameType) -> str:
    return f", at {frame.f_code.co_filename}:{frame.f_lineno}"
