"""Weights rounded to few bits and back, which is what a layer computes with once it is quantized: no packing, no kernel.

Source: Nagel et al., "A White Paper on Neural Network Quantization" (2021), uniform quantization, rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

LAYERS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Weight:
    """A matrix among a module's weights.

    name: of the layer that holds it; of the parameter itself where one layer holds several.
    leading: axes of output channels, in front of those that are summed over: 2 for experts that lie side by side.
    swapped: two axes to exchange first, where the library stores input channels in front of output channels.
    """

    name: str
    value: nn.Parameter
    leading: int = 1
    swapped: tuple[int, int] | None = None

    @property
    def table(self) -> torch.Tensor:
        """Its weights, output channels first."""
        weights = self.value.detach()
        return weights.transpose(*self.swapped) if self.swapped else weights

    @property
    def row(self) -> int:
        """Weights of one output channel."""
        return prod(self.table.shape[self.leading :])


def matrices(module: nn.Module) -> Iterator[Weight]:
    """Every matrix that a quantizer can reach, once, in the module's order: of linear layers, convolutions and embeddings, and those
    that hold the experts of a mixture side by side. Norms, biases and tables of modulation are none."""
    for path, parameter in module.named_parameters():
        owner, _, last = path.rpartition(".")
        layer = module.get_submodule(owner)
        if last == "weight" and type(layer).__name__ == "Conv1D":  # of transformers: GPT-2's linear layers
            yield Weight(owner, parameter, swapped=(0, 1))
        elif last == "weight" and isinstance(layer, LAYERS):
            yield Weight(owner, parameter, swapped=(0, 1) if getattr(layer, "transposed", False) else None)
        elif parameter.dim() == 3 and "expert" in path:
            yield Weight(path, parameter, 2, (1, 2) if getattr(layer, "is_transposed", False) else None)


def group_of(row: int, asked: int) -> int:
    """The largest group of at most `asked` weights that divides a row; the whole row where `asked` is 0."""
    return next(size for size in range(min(asked or row, row), 0, -1) if row % size == 0)


def rounded(weight: Weight, bits: int, group: int, *, symmetric: bool) -> torch.Tensor:
    """A matrix as it is after rounding to `bits`, in its own shape and number type.

    Args:
        group: weights of a row that share a scale, as `group_of` gives them.
        symmetric: codes lie around zero, -2^(bits-1)+1 to 2^(bits-1)-1; else the smallest weight of a group is code 0.
    """
    groups = weight.table.reshape(-1, group).float()
    found = (_symmetric if symmetric else _asymmetric)(groups, bits).reshape(weight.table.shape)
    return (found.transpose(*weight.swapped) if weight.swapped else found).to(weight.value.dtype)


def _symmetric(groups: torch.Tensor, bits: int) -> torch.Tensor:
    most = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(1, keepdim=True) / most).clamp(min=1e-12)
    codes: torch.Tensor = (groups / scale).round().clamp(-most, most)
    return codes.mul(scale)


def _asymmetric(groups: torch.Tensor, bits: int) -> torch.Tensor:
    """Zero is a code of its own, so that weights of 0 stay 0, as engines store them."""
    most = 2**bits - 1
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / most).clamp(min=1e-12)
    zero = (-low / scale).round()
    codes: torch.Tensor = ((groups / scale).round() + zero).clamp(0, most)
    return codes.sub(zero).mul(scale)
