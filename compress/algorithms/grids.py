"""Weights on a grid of few levels a group of inputs: the grid, its scales, and rounding that a gradient passes.

A row of weights [outputs, inputs] is cut into groups of as many inputs, and each group has a scale s. A weight w is kept as the whole
number q = clamp(round(w / s), low, high) and comes back as q · s, which is how compressed-tensors, and whatever reads its layout,
computes it where there are no zero points. `rounding.py` has the codes that engines store instead.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018); the
straight-through estimator of Bengio et al. (2013); learned scales, Esser et al., "Learned Step Size Quantization" (2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHRINKS = 20  # scales tried a group, from that of the largest weight down to half of it


@dataclass(frozen=True)
class Grid:
    """2^bits levels, for each group of as many inputs; group_size -1: a whole row."""

    bits: int
    group_size: int

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def groups(self, weight: torch.Tensor) -> torch.Tensor:
        """[outputs, inputs] as [outputs, groups, inputs of a group]."""
        size = weight.shape[1] if self.group_size == -1 else self.group_size
        return weight.reshape(weight.shape[0], -1, size)


def scales_of(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Scales [outputs, groups] by which rounding these weights errs least in the square, of some between that by which
    the largest still fits and half of it."""
    reach = grid.groups(weight).abs().amax(-1) * 2
    best, scale = torch.full_like(reach, torch.inf), torch.ones_like(reach)
    for step in range(SHRINKS + 1):
        tried = (reach * (1 - step / (2 * SHRINKS)) / (grid.high - grid.low)).clamp(min=torch.finfo(weight.dtype).eps)
        error = (rounded(weight, tried, grid) - weight).square()
        total = grid.groups(error).sum(-1)
        better = total < best
        best, scale = torch.where(better, total, best), torch.where(better, tried, scale)
    return scale


def rounded(weight: torch.Tensor, scale: torch.Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weights as they come back from the grid, in float32: rounded to what `dtype` holds, which they will be stored in.

    The gradient passes rounding as if there were none, and stops where a weight lies beyond the grid; that of a scale is the learned
    step size's.

    Args:
        scale: [outputs, groups].
    """
    s = scale.unsqueeze(-1)
    inside = (grid.groups(weight) / s).clamp(grid.low, grid.high)
    levels = inside + (inside.round() - inside).detach()
    found = (levels * s).flatten(1)
    return found if dtype == torch.float32 else found + (found.to(dtype).float() - found).detach()
