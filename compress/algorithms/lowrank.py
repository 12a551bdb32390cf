"""A low-rank update added to the weight that it was trained beside (LoRA: Hu et al. 2021, arXiv:2106.09685), and a magnitude for each of
its outputs where one was trained too (DoRA: Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

import torch
from torch import Tensor


def fused(
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    factor: float,
    *,
    transposed: bool = False,
    magnitude: Tensor | None = None,
) -> Tensor:
    """weight + factor · up · down, computed in float32 (float64 for a float64 weight) and given in the weight's own type.

    Args:
        weight: (out, in, …), or (in, out) where `transposed`.
        down: (rank, in, …). up: (out, rank, 1, …).
        magnitude: (out) numbers in any shape: how long the row of each output is made.
    """
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    update = up.to(exact).flatten(1) @ down.to(exact).flatten(1)
    shaped = update.T if transposed else update.reshape(weight.shape)
    changed = weight.to(exact) + factor * shaped
    if magnitude is not None:
        rows = (changed.T if transposed else changed).flatten(1)
        rows = rows * (magnitude.to(exact).flatten() / rows.norm(dim=1))[:, None]
        changed = rows.T if transposed else rows.reshape(weight.shape)
    return changed.to(weight.dtype)
