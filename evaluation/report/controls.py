"""The controls in words: how far the candidate is ahead of each, and whether that one would have passed the gates itself."""

from __future__ import annotations

import math
from dataclasses import replace

from evaluation.comparison import Comparison, Row
from evaluation.comparison.control_rows import Beside, Control
from evaluation.report import formatting, speed_summary

HEADINGS = ("metric", "control", "control against baseline", "candidate against control", "its verdict")
VERBS = (("fail", "fails"), ("inconclusive", "leaves open"), ("pass", "passes"))


def line(comparison: Comparison, control: Control) -> str:
    """A sentence on the candidate's lead, and one on what the control itself would have passed."""
    row, found = _speed(comparison, control)
    lead = alone = ""
    if row and found:
        lead = f" {_against(row, found)}."
        alone = f" is {_ratio(row, found)} the baseline, and" if math.isfinite(found.contrast.value) else ""
    return f"Beside the control `{control.stage}`:{lead} The control alone{alone} {_gates(control)}."


def _speed(comparison: Comparison, control: Control) -> tuple[Row | None, Beside | None]:
    """The speed that the control was timed in, as a row of the verdict and as the control has it."""
    timed = {found.metric: found for found in control.rows}
    rows = [row for row in comparison.rows if row.metric in timed and row.unit in speed_summary.UNITS]
    lead = formatting.speed_of(comparison)
    row = lead if lead in rows else next(iter(rows), None)
    return row, timed[row.metric] if row else None


def _against(row: Row, found: Beside) -> str:
    """How much faster or slower the candidate is than the control; that it proves nothing, where it does not."""
    if not math.isfinite(found.over.value):
        return f"{row.title} not measured" + (f" ({found.over.note})" if found.over.note else "")
    _, message = speed_summary.message_of(replace(row, contrast=found.over, noise=found.noise))
    unsettled = found.noise.note if found.noise else ""
    return message + (f", which proves nothing ({unsettled})" if unsettled else "")


def _ratio(row: Row, found: Beside) -> str:
    """`9.8× [9.1, 10.4] as fast as`."""
    return f"{formatting.contrast_of(row, found.contrast)} as fast as"


def _gates(control: Control) -> str:
    """What the control does to each gate, the failed ones first."""
    gated = [row for row in control.rows if row.verdict.status != "not gated"]
    if not gated:
        return "was held to no gate"
    if control.status == "pass":
        return f"would have passed: {', '.join(row.title for row in gated)}"
    named = {status: ", ".join(row.title for row in gated if row.verdict.status == status) for status, _ in VERBS}
    return "would not have passed: it " + "; ".join(f"{verb} {named[s]}" for s, verb in VERBS if named[s])


def as_candidate(comparison: Comparison, control: Control) -> Comparison:
    """The run as it would read were the control its candidate, as far as that was measured."""
    rows = {row.metric: row for row in comparison.rows}
    own = tuple(_as_row(rows[found.metric], found) for found in control.rows if found.metric in rows)
    return replace(comparison, candidate=control.side, rows=own, controls=())


def _as_row(row: Row, found: Beside) -> Row:
    return replace(row, candidate=found.score, contrast=found.contrast, verdict=found.verdict, noise=found.noise)


def lines(comparison: Comparison) -> list[str]:
    """A line a control."""
    return [line(comparison, control) for control in comparison.controls]


def table(comparison: Comparison, control: Control) -> list[tuple[Beside, tuple[str, ...]]]:
    """Under `HEADINGS` the cells of each metric in words; behind them the gate, and why it says so."""
    rows = {row.metric: row for row in comparison.rows}
    return [(found, _cells(rows[found.metric], found)) for found in control.rows if found.metric in rows]


def _cells(row: Row, found: Beside) -> tuple[str, ...]:
    held = replace(row, verdict=found.verdict)
    gate = ": ".join(part for part in (found.verdict.gate, formatting.reason(held)) if part)
    return (
        found.title,
        formatting.score_of(row, found.score, found.contrast),
        formatting.contrast_of(row, found.contrast),
        formatting.contrast_of(row, found.over),
        formatting.mark(held),
        gate,
    )
