"""Is it faster? Every speed that was measured is spoken of, also one that fell, and every stage that made the model slower."""

from __future__ import annotations

import math
from typing import Literal

from compress.catalogue import find_metric, metric_names
from evaluation.comparison import Comparison, Row, Step
from evaluation.report import formatting
from evaluation.values import Estimate

Kind = Literal["faster", "slower", "unclear"]
UNITS = ("ms", "s", "/s")  # of what is a time or a rate
HEADS: dict[Kind, str] = {"faster": "Yes", "slower": "No", "unclear": "Not shown"}
UNSETTLED = "Not settled"


def answer(comparison: Comparison) -> str:
    """The leading speed, then all others, those that came out otherwise with a "but"; last, the stages that cost speed."""
    rows = [row for row in comparison.rows if _is_speed(row) and math.isfinite(row.contrast.value)]
    if not rows:
        return "Not measured."
    lead = formatting.speed_of(comparison)
    lead = lead if lead in rows else rows[0]
    kind, text = message_of(lead)
    others = [message_of(row) for row in rows if row is not lead]
    unsettled = lead.noise.note if lead.noise else ""  # of times that prove nothing
    parts = [f"{UNSETTLED if unsettled else HEADS[kind]}: {text}"]
    parts += [f"also {message}" for other, message in others if other == kind]
    parts += [f"but {message}" for other, message in others if other != kind]
    parts += [unsettled] if unsettled else []
    return " ".join(("; ".join(parts) + ".", *(f"{message}." for message in slowed(comparison))))


def _is_speed(row: Row) -> bool:
    """Whether a row is of a time or a rate; where runs are compared across machines, its sides are ratios of such."""
    return row.unit in UNITS or (row.metric in metric_names() and find_metric(row.metric).unit in UNITS)


def slowed(comparison: Comparison) -> list[str]:
    """The stages that alone are shown to make the model slower, each with what the run would be without it.

    That supposes that the other stages would gain as much without it.
    """
    whole = formatting.speed_row(comparison)
    return [] if whole is None else [_without(step, whole) for step in comparison.steps[1:] if _is_slower(step)]


def _is_slower(step: Step) -> bool:
    alone = step.speed.marginal if step.speed else None
    return alone is not None and 0 < alone.high < 1


def _without(step: Step, whole: Row) -> str:
    alone = step.speed.marginal if step.speed else None
    if alone is None or not math.isfinite(whole.contrast.value):
        return f"The stage {step.stage} made it slower"
    would = formatting.number(whole.contrast.value / alone.value)
    return (
        f"The stage {step.stage} made it slower, {formatting.contrast_of(whole, alone)} in {whole.title}: without it the run "
        f"would be at about {would}×, if the other stages gain as much"
    )


def message_of(row: Row) -> tuple[Kind, str]:
    """Whether a speed rose or fell beyond the noise, with the ratio."""
    found, noise = row.contrast, row.noise
    floor = max(noise.high, 1 / noise.low) if noise and noise.low > 0 else 1.0
    if found.low > floor:
        return "faster", f"{formatting.ratio(found, 'faster')} in {row.title}"
    if found.low > 0 and found.high < 1 / floor:
        slower = Estimate(1 / found.value, 1 / found.high, 1 / found.low, found.n)
        return "slower", f"{formatting.ratio(slower, 'slower')} in {row.title}"
    return "unclear", f"{formatting.contrast(row)} in {row.title} is no more than the noise"
