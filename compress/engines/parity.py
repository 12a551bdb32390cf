"""An engine compared with torch: how far its outputs lie from torch's, and in which layer they begin to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from compress.algorithms.forward_hooks import hearing
from compress.algorithms.tensors import to_array
from compress.engines.module import flatten
from compress.engines.torch.runtime import silent_libraries
from compress.engines.tracing import Call, in_float32, named_tensors, split

Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Difference:
    """How far an engine's outputs lie from torch's: the largest, and the root mean square over that of torch's own."""

    largest: float
    relative: float


def compare_calls(module: torch.nn.Module, engine: torch.nn.Module, function: str, call: Call) -> Difference:
    """Compare a torch component, which is left in float32, with its engine on one real call."""
    inputs, constants = split(call)
    inputs = {n: in_float32(v) for n, v in inputs.items()}
    with silent_libraries():
        reference = getattr(module.float(), function)
    return compare(
        lambda: reference(**inputs, **constants, return_dict=True), lambda: getattr(engine, function)(**inputs)
    )


def compare(reference: Callable[[], Any], engine: Callable[[], Any]) -> Difference:
    """Call both and compare every tensor they give, by name."""
    with torch.no_grad():
        ours, theirs = flatten(named_tensors(engine())), flatten(named_tensors(reference()))
    return difference(ours, theirs)


def difference(ours: Outputs, theirs: Outputs) -> Difference:
    """Of tensors by name, over all of them together."""
    largest, error, scale = 0.0, 0.0, 0.0
    for name, tensor in theirs.items():
        expected = to_array(tensor.double())
        gap = to_array(ours[name].double()) - expected
        largest = float(np.maximum(largest, np.abs(gap).max()))  # not `max`, which loses what is no number
        error, scale = error + float(np.square(gap).sum()), scale + float(np.square(expected).sum())
    relative = float(np.sqrt(error / max(scale, 1e-30)))
    return Difference(largest, relative if np.isfinite(largest) else float("inf"))


Watch = Callable[[tuple[str, ...]], tuple[Outputs, Outputs]]


def first_broken(module: torch.nn.Module, run: Callable[[], Any], watch: Watch, allowed: float) -> str:
    """The innermost layer whose output is the first to differ by more than `allowed`; "" where none does by itself.

    Each round watches the parts of the layer found so far, in the order they run, and goes into the first that differs.

    Args:
        run: calls `module` once, as it is called.
        watch: given names of submodules, their outputs from the engine and from torch.
    """
    found = ""
    while parts := _parts_in_order(module, found, run):
        ours, theirs = watch(parts)
        recorded = [name for name in parts if name in ours and name in theirs]
        broken = (n for n in recorded if not difference({n: ours[n]}, {n: theirs[n]}).relative <= allowed)
        if not (first := next(broken, "")):
            break
        found = first
    return found


def _parts_in_order(module: torch.nn.Module, name: str, run: Callable[[], Any]) -> tuple[str, ...]:
    """The submodules directly within a layer, lists of modules opened, in the order in which they are called."""
    called: list[str] = []
    with hearing(module, _parts(module, name), lambda part, *_: called.append(part)), torch.no_grad():
        run()
    return tuple(dict.fromkeys(called))


def _parts(module: torch.nn.Module, name: str) -> list[str]:
    found: list[str] = []
    for child, part in module.get_submodule(name).named_children():
        path = f"{name}.{child}" if name else child
        found += _parts(module, path) if isinstance(part, torch.nn.ModuleList | torch.nn.ModuleDict) else [path]
    return found
