"""A low-rank update added to the weight that it was trained beside (LoRA: Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import torch
from torch import Tensor


def fused(weight: Tensor, down: Tensor, up: Tensor, factor: float, *, transposed: bool = False) -> Tensor:
    """weight + factor · up · down, computed in float32 (float64 for a float64 weight) and given in the weight's own type.

    Args:
        weight: (out, in, …), or (in, out) where `transposed`.
        down: (rank, in, …). up: (out, rank, 1, …).
    """
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    update = up.to(exact).flatten(1) @ down.to(exact).flatten(1)
    shaped = update.T if transposed else update.reshape(weight.shape)
    return (weight.to(exact) + factor * shaped).to(weight.dtype)
