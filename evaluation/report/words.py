"""Numbers as people read them: no more digits than the interval supports, units, brackets around intervals."""

from __future__ import annotations

import math

from evaluation.scores import Comparison, Estimate, Row

MARKS = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive", "not gated": "–"}
VERDICTS = {
    "pass": "PASS: all gates passed",
    "fail": "FAIL: a gate failed",
    "inconclusive": "INCONCLUSIVE: a gate needs more samples",
    "not gated": "MEASURED: no gates were set",
}


def number(value: float, spread: float = 0.0) -> str:
    """A value with two digits of its spread, or three significant digits where there is none."""
    if not math.isfinite(value):
        return "n/a"
    if spread > 0 and math.isfinite(spread):
        digits = max(0, min(6, 1 - math.floor(math.log10(spread))))
    else:
        digits = max(0, min(4, 2 - math.floor(math.log10(abs(value))))) if value else 0
    return f"{value:.{digits}f}"


def score(estimate: Estimate, unit: str) -> str:
    """One side's number with its unit."""
    text = number(estimate.value, (estimate.high - estimate.low) / 2)
    return f"{text} {unit}".replace(" /s", "/s").strip()


def contrast(row: Row) -> str:
    """The difference with its sign, or the ratio, and the 95% interval."""
    found = row.contrast
    spread = (found.high - found.low) / 2
    if row.compared == "ratio":
        body = f"{number(found.value, spread)}×"
        return body if spread == 0 else f"{body} [{number(found.low, spread)}, {number(found.high, spread)}]"
    unit = f" {row.unit}" if row.unit else ""
    sign = "+" if found.value >= 0 else "−"
    low, high = (number(v, spread).replace("-", "−") for v in (found.low, found.high))
    return f"{sign}{number(abs(found.value), spread)}{unit} [{low}, {high}]"


def mark(row: Row) -> str:
    return MARKS[row.verdict.status]


def questions(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Is it faster, is it as good, can I trust it: each with an answer made of the rows."""
    rows = {row.metric: row for row in comparison.rows}
    speed = rows.get("latency") or rows.get("throughput")
    faster = f"{contrast(speed)} in {speed.title}" if speed else "not measured"
    quality = [r for r in comparison.rows if r.compared == "difference" and r.verdict.status != "not gated"]
    worst = [r.title for r in quality if r.verdict.status != "pass"]
    good = "no quality gate was set"
    if quality:
        good = (
            f"yes, in all of: {', '.join(r.title for r in quality)}"
            if not worst
            else f"not shown by: {', '.join(worst)}"
        )
    noise = speed.noise if speed and speed.noise else None
    trust = f"{max((r.contrast.n for r in quality), default=0)} units a side, paired"
    if noise:
        trust += f"; the baseline against itself gives {number(noise.value, 0.001)}× [{number(noise.low, 0.001)}, {number(noise.high, 0.001)}]"
    return (("Is it faster?", faster), ("Is it as good?", good), ("Can I trust it?", trust))


def machine(comparison: Comparison) -> str:
    """The machine in one line."""
    facts = comparison.machine
    flags = " ".join(facts.get("flags", ()))
    head = f"{facts.get('processor', '?')}, {facts.get('threads', '?')} threads, {facts.get('memory_gb', '?')} GB"
    return f"{head}, {flags}; {facts.get('read_gb_s', '?')} GB/s read, {facts.get('gemm_gflop_s', '?')} GFLOP/s fp32"
