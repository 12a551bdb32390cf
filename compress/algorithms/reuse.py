"""What an earlier step gave, in place of computing it: when it is near enough, and what is made of it.

All tensors are of shape [rows, …]; a row is one image in one pass of guidance, and nothing of it depends on the rows beside it.
Sources: First Block Cache (ParaAttention, Cheng 2024, after TeaCache, Liu et al. 2024), TaylorSeer (Liu et al. 2025), MagCache (Ma et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


def row_changes(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """By how much each row moved: the mean absolute difference over the mean absolute value before; NaN where that is zero in both.

    Returns:
        float32 [rows].
    """
    moved = (now - before).abs().flatten(1).mean(1, dtype=torch.float32)
    return moved / before.abs().flatten(1).mean(1, dtype=torch.float32)


def chosen(rows: torch.Tensor, these: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
    """`these` in the rows that are true, `those` in the others.

    Args:
        rows: bool [rows].
    """
    return torch.where(rows.view(-1, *[1] * (these.dim() - 1)), these, those)


@dataclass(frozen=True)
class Series:
    """A Taylor series about one step, in steps.

    terms: the value there and its differences of rising order, float32.
    """

    step: int
    terms: tuple[torch.Tensor, ...]

    def further(self, step: int, value: torch.Tensor, order: int) -> Series:
        """The series about a later step at which the value was computed, of an order of one more than this one's, at most `order`."""
        terms = [value.float()]
        for before in self.terms[:order]:
            terms.append((terms[-1] - before) / (step - self.step))
        return Series(step, tuple(terms))

    def at(self, step: int) -> torch.Tensor:
        """What it foretells of another step."""
        apart = step - self.step
        found = self.terms[0]
        for order, term in enumerate(self.terms[1:], 1):
            found = found + term * (apart**order / math.factorial(order))
        return found


def begun(step: int, value: torch.Tensor) -> Series:
    """A series of which one value is known."""
    return Series(step, (value.float(),))


@dataclass
class Drift:
    """How far a residual that is reused may be off by now, by how much residuals grew at each step when they were looked at. Mutable."""

    ratio: float = 1.0
    error: float = 0.0
    steps: int = 0

    def allows(self, ratio: float, threshold: float, most: int) -> bool:
        """Whether one step more may reuse it, whose residual was `ratio` times as large as the one before; if not, it begins anew."""
        self.ratio *= ratio
        self.steps += 1
        self.error += abs(1 - self.ratio)
        if self.error < threshold and self.steps <= most:
            return True
        self.ratio, self.error, self.steps = 1.0, 0.0, 0
        return False


def growth(now: torch.Tensor, before: torch.Tensor) -> float:
    """How many times as large each token's residual is as it was a step before, on average."""
    lengths = torch.linalg.vector_norm(now.float(), dim=-1), torch.linalg.vector_norm(before.float(), dim=-1)
    return float((lengths[0] / (lengths[1] + 1e-8)).mean())


def spread(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """Ratios that were found over some number of steps, for another: each step's is that of the nearest one."""
    if steps <= 1:
        return (ratios[-1],) * steps
    scale = (len(ratios) - 1) / (steps - 1)
    return tuple(ratios[round(at * scale)] for at in range(steps))
