"""What each stage gave and cost: a waterfall of speed-ups with the change of quality beside it, and the same as a table."""

from __future__ import annotations

import math
from itertools import pairwise

from evaluation.comparison import Comparison, Row, Step
from evaluation.report import formatting, plots
from evaluation.report.tradeoff import TICKS, ends
from evaluation.values import Estimate


def waterfall(comparison: Comparison) -> str:
    """A bar a stage, each from where the one before ended. "" where no stage was looked at."""
    if len(comparison.steps) < 2:
        return ""
    speeds = [_speed(step) for step in comparison.steps]
    x = plots.scale([1.0, *(end for found in speeds if found for end in (*ends(found), found.value))], True)
    at, parts = 1.0, []
    for (before, step), found in zip(pairwise(comparison.steps), speeds[1:], strict=True):
        note = f"<small>{formatting.escaped(step.note)}</small>" if step.note else ""
        parts.append(
            f'<div class="forest"><div><b>{formatting.escaped(step.stage)}</b>{note}</div>'
            f"<div>{_bar(at, found, _kind(step), x) if found else ''}</div>"
            f'<div class="n">{_share(comparison, before, step)}</div></div>'
        )
        at = found.value if found else at
    axis = "".join(plots.labels([1.0, *(t for t in TICKS if 0 < x(t) < 100)], x, "×", 14))
    ruler = f'<div class="forest ruler"><div></div><svg aria-hidden="true">{axis}</svg><div></div></div>'
    return "".join(parts) + (ruler if any(speeds) else "")


def _speed(step: Step) -> Estimate | None:
    """The speed-up so far, where it can be drawn."""
    found = step.speed.cumulative if step.speed else None
    return found if found and math.isfinite(found.value) and min(ends(found)) > 0 else None


def _kind(step: Step) -> str:
    """Whether the stage alone is shown to be faster or slower than the one before."""
    alone = step.speed.marginal if step.speed else None
    if alone is None or not (alone.low > 1 or alone.high < 1):
        return "unclear"
    return "gain" if alone.low > 1 else "loss"


def _bar(before: float, found: Estimate, kind: str, x: plots.Scale) -> str:
    left, right = sorted((x(before), x(found.value)))
    low, high = map(x, ends(found))
    label = f"speed-up from {plots.tick(before)}× to {plots.tick(found.value)}×"
    return (
        f'<svg role="img" aria-label="{label}"><line class="middle" x1="{x(1.0):.2f}%" x2="{x(1.0):.2f}%" y1="0" y2="46"/>'
        f'<rect class="{kind}" x="{left:.2f}%" width="{right - left:.2f}%" y="12" height="16"/>'
        f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="20" y2="20"/></svg>'
    )


def _share(comparison: Comparison, before: Step, step: Step) -> str:
    """What the stage alone gave and cost, in words."""
    rows = {row.metric: row for row in comparison.rows}
    head = ""
    if step.speed and (row := rows.get(step.speed.metric)):
        head = f"<b>{formatting.escaped(formatting.contrast_of(row, step.speed.marginal))}</b>"
        head += f"<small>so far {formatting.escaped(formatting.contrast_of(row, step.speed.cumulative))}</small>"
    costs = [
        f"{q.title} {formatting.contrast_of(rows[q.metric], q.marginal)}" for q in step.quality if q.metric in rows
    ]
    size = f"{formatting.size(before.size_bytes)} → {formatting.size(step.size_bytes)}"
    costs.append(f"weights {size}" if step.size_bytes != before.size_bytes else "weights as large as before")
    return head + "".join(f"<small>{formatting.escaped(cost)}</small>" for cost in costs)


def table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows in words, one a stage; a column a gated quality metric. No rows where no stage was looked at."""
    speed, steps = formatting.speed_row(comparison), comparison.steps[1:]
    scored = {q.metric for step in steps for q in step.quality}
    quality = [row for row in comparison.rows if row.metric in scored]
    headings = (
        "stage",
        *(("speed-up so far", "this stage") if speed else ()),
        "weights on disk",
        *(f"{q.title} so far" for q in quality),
    )
    rows = []
    for step in steps:
        fast = (step.speed.cumulative, step.speed.marginal) if step.speed else (None, None)
        rows.append(
            (
                step.stage,
                *((formatting.contrast_of(speed, found) for found in fast) if speed else ()),
                formatting.size(step.size_bytes),
                *(formatting.contrast_of(row, _cumulative(step, row)) for row in quality),
            )
        )
    return headings, rows


def _cumulative(step: Step, row: Row) -> Estimate | None:
    return next((q.cumulative for q in step.quality if q.metric == row.metric), None)


def units(comparison: Comparison) -> int:
    """How many prompts or documents the stages' quality rests on; 0 where none was scored."""
    return max((q.cumulative.n for step in comparison.steps for q in step.quality), default=0)
