"""Numbers as people read them: no more digits than the interval supports, units, brackets around intervals."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html import escape

from compress.catalogue import find_task, task_names
from evaluation.comparison import ADAPTER, ENDPOINT, IMAGES, Comparison, Row, Side
from evaluation.values import Estimate

MARKS = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive", "not gated": "–"}
VERDICTS = {
    "pass": "PASS: all gates passed",
    "fail": "FAIL: a gate failed",
    "inconclusive": "INCONCLUSIVE: a gate could not be decided",
    "not gated": "MEASURED: no gates were set",
}
# unit: (smallest magnitude it is written in, factor, written unit), the largest first
SCALES = {
    "MB": ((1e3, 1e-3, "GB"), (0.1, 1.0, "MB"), (0.0, 1e3, "kB")),
    "ms": ((1e4, 1e-3, "s"), (0.1, 1.0, "ms"), (0.0, 1e3, "µs")),
}
MOST_PLACES = 6  # behind the point; what needs more is written with a power of ten
SPEEDS = ("latency", "throughput", "time_per_output_token", "time_to_first_token")
# Terminals act on these, XML cannot hold most of them, and no reader sees any.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def visible(text: object) -> str:
    """Text without control characters and lone surrogates: harmless to a terminal, and holdable by XML."""
    return CONTROL.sub("�", str(text))


def escaped(text: object) -> str:
    """Visible text as HTML and as an attribute's value."""
    return escape(visible(text))


def number(value: float, spread: float = 0.0, apart: float = 0.0) -> str:
    """A value to two digits of its spread (half an interval), or three significant digits where there is none.

    Args:
        apart: a difference shown beside it, which its last digit is then smaller than; as far as six places allow.
    """
    if not math.isfinite(value):
        return "n/a"
    if spread > 0 and math.isfinite(spread):
        digits = 1 - math.floor(math.log10(spread))
    else:
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    if apart and math.isfinite(apart) and digits < MOST_PLACES:
        digits = max(digits, min(1 - math.ceil(math.log10(abs(apart))), MOST_PLACES))
    if digits > MOST_PLACES:
        return f"{value:.1e}".replace("-", "−") if value else "0"
    rounded = round(value, digits) or 0.0  # the `or` turns −0.0 into 0
    return f"{rounded:.{max(0, digits)}f}".replace("-", "−")


def score(estimate: Estimate, unit: str, apart: float = 0.0) -> str:
    """One side's number with its unit; apart: a difference shown beside it, as `number` has it."""
    if not math.isfinite(estimate.value):
        return "n/a"
    factor, written = _scale(estimate.value, unit)
    text = number(estimate.value * factor, half_width(estimate) * factor, apart * factor)
    return f"{text} {written}".replace(" /s", "/s").strip()


def scores(row: Row) -> tuple[str, str]:
    """Both sides' numbers, apart by as much as the difference beside them says."""
    shown = _shown_difference(row)
    return score(row.baseline, row.unit, shown), score(row.candidate, row.unit, shown)


def score_of(row: Row, estimate: Estimate, found: Estimate | None) -> str:
    """The number of another side than the row's two, beside its own contrast with the baseline."""
    return score(estimate, row.unit, _shown_difference(replace(row, contrast=found)) if found else 0.0)


def _shown_difference(row: Row) -> float:
    """The difference that a row's contrast shows; 0 where that is a ratio, or rounds to nothing."""
    found = row.contrast
    if row.compared == "ratio" or not math.isfinite(found.value) or not re.search("[1-9]", _difference(row)[0]):
        return 0.0
    return found.value


def size(count: float) -> str:
    """Bytes as kB, MB or GB (powers of ten)."""
    return score(Estimate(count / 1e6, count / 1e6, count / 1e6, 1), "MB")


def contrast(row: Row) -> str:
    """The difference with its sign, or the ratio, and the 95% interval."""
    found = row.contrast
    if not math.isfinite(found.value):
        return "not measured"
    if row.compared == "ratio":
        return with_interval(number(found.value, half_width(found)) + "×", found)
    text, unit, scaled = _difference(row)
    sign = "+" if found.value > 0 and re.search("[1-9]", text) else ""
    return with_interval(f"{sign}{text} {unit}".strip(), scaled)


def _difference(row: Row) -> tuple[str, str, Estimate]:
    """A row's contrast where that is a difference: in words, its unit, and the estimate in that unit."""
    found = row.contrast
    factor, unit = _scale(max(abs(found.value), half_width(found)), row.unit)
    scaled = Estimate(found.value * factor, found.low * factor, found.high * factor, found.n)
    return number(scaled.value, half_width(scaled)), unit, scaled


def contrast_of(row: Row, found: Estimate | None) -> str:
    """A contrast of the row's metric that is not the row's own, such as a stage's."""
    return contrast(replace(row, contrast=found)) if found else "–"


def unmeasured(comparison: Comparison) -> list[str]:
    """The rows without a number, and why they have none."""
    rows = [row for row in comparison.rows if not math.isfinite(row.contrast.value)]
    return [f"{row.title}: not measured" + (f", {row.contrast.note}" if row.contrast.note else "") for row in rows]


def mark(row: Row) -> str:
    return MARKS[row.verdict.status]


def reason(row: Row) -> str:
    """Why a gate says what it says, and how many units would decide it, by which setting; "" where there is nothing to add."""
    needed = f"about {row.verdict.n_needed} units would decide it" if row.verdict.n_needed else ""
    needed += f": {row.verdict.setting}" if needed and row.verdict.setting else ""
    return "; ".join(part for part in (row.verdict.why, needed) if part)


def machine(comparison: Comparison) -> str:
    """The machine in one line, of the facts that are known."""
    facts = comparison.machine
    known = (
        ("processor", "{}"),
        ("gpu", "{}"),
        ("threads", "{} threads"),
        ("memory_gb", "{} GB"),
        ("flags", "{}"),
        ("read_gb_s", "{} GB/s read"),
        ("gemm_gflop_s", "{} GFLOP/s fp32"),
        ("gpu_copy_gb_s", "{} GB/s copied on the GPU"),
        ("gpu_gemm_bf16_tflop_s", "{} TFLOP/s bf16 there"),
        ("gpu_slowed_by", "slowed by {}"),
        ("others_share", "{:.1%} of it taken by other processes while timed"),
    )
    found = [(facts[key], form) for key, form in known if facts.get(key)]
    found = [(v, "{} thread" if form == "{} threads" and v == 1 else form) for v, form in found]
    parts = [form.format(" ".join(map(str, v)) if isinstance(v, (list, tuple)) else v) for v, form in found]
    return ", ".join(parts) or "not recorded"


def half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def _scale(value: float, unit: str) -> tuple[float, str]:
    scales = SCALES.get(unit, ())
    # No sub-unit for exactly nothing: "0 MB", not "0 kB".
    return next(((f, u) for least, f, u in scales if value and abs(value) >= least), (1.0, unit))


def with_interval(head: str, estimate: Estimate) -> str:
    """`head` with the interval in brackets; without, where the number is exact."""
    half = half_width(estimate)
    return head if half == 0 else f"{head} [{number(estimate.low, half)}, {number(estimate.high, half)}]"


def speed_row(comparison: Comparison) -> Row | None:
    """The row of the metric that the stages' speed is measured in."""
    names = {step.speed.metric for step in comparison.steps if step.speed}
    return next((row for row in comparison.rows if row.metric in names), None)


def speed_of(comparison: Comparison) -> Row | None:
    """The row that says how fast the candidate is: what its stages were timed in, else a gated speed, else the first."""
    timed = [row for row in comparison.rows if row.metric in SPEEDS]
    gated = [row for row in timed if row.gate]
    return speed_row(comparison) or next(iter(gated or timed), None)


def ratio(estimate: Estimate, word: str) -> str:
    """`4.3× faster [4.1, 4.6]`."""
    return with_interval(f"{number(estimate.value, half_width(estimate))}× {word}", estimate)


def sides(comparison: Comparison) -> tuple[tuple[str, Side], ...]:
    """Baseline, candidate and controls, each with what it is called."""
    both = ((side.name, side) for side in (comparison.baseline, comparison.candidate))
    return (*both, *((f"control {control.stage}", control.side) for control in comparison.controls))


def runs(comparison: Comparison, side: Side) -> str:
    """What runs a side, and how it was called, in a recipe's words: the adapters in it, its steps and guidance, where the task
    has such settings and the model goes by them."""
    if side.engine == IMAGES or side.engine.startswith(ENDPOINT):
        return side.engine
    task = find_task(comparison.task) if comparison.task in task_names() else None
    reported = (
        f"{name} {side.call[argument]}" if argument in side.call else f"the pipeline's own {name}"
        for name, argument in (task.arguments(side.call).items() if task else ())
        if name not in side.unheeded and (argument in side.call or (task and name in task.reported))
    )
    return ", ".join((side.engine, *_adapters(side), *reported))


def _adapters(side: Side) -> list[str]:
    """The adapters that were fused into a side before any stage, or are loaded beside it."""
    named = (made["params"].get("adapters", ()) for made in side.lineage if made["stage"] == ADAPTER)
    return [
        f"with the adapter {one['kept']} beside it (scale {one['scale']:g})"
        if "kept" in one
        else f"with an adapter in it (scale {one['scale']:g})"
        for adapters in named
        for one in adapters
    ]


def handed(comparison: Comparison) -> tuple[str, ...]:
    """Where the candidate lies, and behind that the lines that load and call it; () where it is no model."""
    found = comparison.handed
    return (f"your model: {found.path}" + (f" ({found.note})" if found.note else ""), *found.code) if found else ()
