"""CUDA graphs without a GPU: what is captured is written down, undone and not computed; a replay does it again on the same memory.

As on a GPU, a graph's outputs hold nothing until it is replayed, inputs are read where they lay, and what Python did meanwhile is not
done again. `pretended` puts it where torch.cuda is, and lets the processor count as a device that graphs are taken on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeGraph:
    """Operations in order, each with what it was given and what it gave."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, gave in self.done:
                for old, new in zip(_tensors(gave), _tensors(function(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class FakeStream:
    """The only stream there is."""

    def __init__(self, device: object = None) -> None: ...

    def wait_stream(self, other: object) -> None: ...


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
        for message, given in zip(func._schema.arguments, args, strict=False):
            if message.alias_info and message.alias_info.is_write and isinstance(given, torch.Tensor):
                self.before.setdefault(given.data_ptr(), (given, given.clone()))
        gave = func(*args, **kwargs)
        self.graph.done.append((func, args, kwargs, gave))
        return gave


@contextmanager
def _capturing(graph: FakeGraph, pool: object = None) -> Iterator[None]:
    recorder = _Recorder(graph)
    with recorder:
        yield
    given = {one.data_ptr() for _, args, kwargs, _ in graph.done for one in _tensors((args, kwargs))}
    made = {one.data_ptr() for *_, gave in graph.done for one in _tensors(gave)}
    for *_, gave in graph.done:
        for one in _tensors(gave):
            if one.data_ptr() in made - given - recorder.before.keys() and one.is_floating_point():
                one.fill_(float("nan"))
    for written, was in recorder.before.values():
        written.copy_(was)


def _tensors(value: object) -> list[torch.Tensor]:
    return [one for one in tree_leaves(value) if isinstance(one, torch.Tensor)]


@contextmanager
def pretended() -> Iterator[None]:
    """Within it the processor takes graphs."""
    stream = FakeStream()
    stand_ins = {
        "CUDAGraph": FakeGraph,
        "graph": _capturing,
        "graph_pool_handle": lambda: (0, 1),
        "Stream": FakeStream,
        "current_stream": lambda device=None: stream,
        "stream": lambda one: nullcontext(),
        "device": lambda one: nullcontext(),
        "is_current_stream_capturing": lambda: False,
    }
    with (
        mock.patch.multiple("torch.cuda", **stand_ins),
        mock.patch("compress.opening.compile_and_capture.DEVICES", ("cuda", "cpu")),
    ):
        yield
