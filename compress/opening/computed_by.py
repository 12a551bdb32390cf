"""By what packed layers and engines compute on this device: asked of the opened modules, for each library chooses at loading what it has
kernels for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from compress.opening.models import OpenModel

# Whose layers are classes of their own.
LIBRARIES = ("auto_round", "auto_round_extension", "bitsandbytes", "compressed_tensors", "gptqmodel", "hqq", "optimum")


def packed_layers(module: torch.nn.Module) -> Counter[str]:
    """How many packed layers there are, by what computes them: the class of the layer, or of its weight where its library leaves the
    layer as it is (torchao)."""
    return Counter(filter(None, map(_computed_by, module.modules())))


def _computed_by(layer: torch.nn.Module) -> str:
    kind, weight = type(layer), getattr(layer, "weight", None)
    if kind.__module__.partition(".")[0] in LIBRARIES and not any(layer.children()):
        return kind.__name__
    if (
        getattr(layer, "weight_packed", None) is not None
    ):  # compressed-tensors keeps the layer's class, and changes its call
        return f"{kind.__name__} that unpacks"
    plain = (torch.Tensor, torch.nn.Parameter)
    return type(weight).__name__ if isinstance(weight, torch.Tensor) and type(weight) not in plain else ""


def engine_places(module: torch.nn.Module) -> Mapping[str, int]:
    """How many operators of an engine's graph are computed where, by what its library calls the place; nothing where it has one place."""
    runner = getattr(module, "runner", None) or getattr(getattr(module, "decoder", None), "graph", None)
    found: Mapping[str, int] = getattr(runner, "placed", {})
    return found


def computed_by(opened: OpenModel) -> str:
    """By what the packed components and the engines of an opened model compute, in words; "" where there is no choice."""
    parts = opened.artifact.components
    found: dict[str, Mapping[str, int]] = {}
    for name in parts:
        if parts[name].format != "torch":
            found[name] = engine_places(opened.component(name))
        elif parts[name].quantization:
            found[name] = packed_layers(opened.component(name)) or {"layers that are not known": 1}
    return "; ".join(f"`{name}`: {_counted(kinds)}" for name, kinds in found.items() if kinds)


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
