"""By what the packed layers of an opened module compute: asked of the module itself, for each library chooses at loading what this device has
kernels for."""

from __future__ import annotations

from collections import Counter

import torch

from compress.opening.models import OpenModel

LIBRARIES = (
    "auto_round",
    "bitsandbytes",
    "compressed_tensors",
    "gptqmodel",
    "optimum",
)  # whose layers are classes of their own


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


def layers_inside(opened: OpenModel) -> str:
    """By what the packed components of an opened model compute, in words; "" where none is packed."""
    parts = opened.artifact.components
    names = [name for name in opened.artifact.packed(parts) if parts[name].format == "torch"]
    found = {name: packed_layers(opened.component(name)) for name in names}
    return "; ".join(
        f"`{name}`: "
        + (", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())) or "unpacked when it was loaded")
        for name, kinds in found.items()
    )
