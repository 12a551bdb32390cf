"""What a control is shown to be: each number of its own, what separates it from the baseline and the candidate from it."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.comparison import Side, Status, Verdict
from evaluation.values import Estimate


@dataclass(frozen=True)
class Beside:
    """A metric of a control. Where it has no number, the notes say why.

    score: its own. contrast: with the baseline. over: the candidate's contrast with the control; a ratio above 1 is better for
    the candidate. verdict: what the recipe's gate says of the control. noise: the baseline against itself in the same blocks.
    """

    metric: str
    title: str
    score: Estimate
    contrast: Estimate
    over: Estimate
    verdict: Verdict
    noise: Estimate | None = None


@dataclass(frozen=True)
class Control:
    """A model that another branch of the recipe left, beside the candidate: the step's id, what it is, and what it was measured by."""

    stage: str
    side: Side
    rows: tuple[Beside, ...]

    @property
    def status(self) -> Status:
        """What its verdict would be: fail wins over inconclusive, which wins over pass."""
        seen = {row.verdict.status for row in self.rows}
        order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
        return next((status for status in order if status in seen), "not gated")
