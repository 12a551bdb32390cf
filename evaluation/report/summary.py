"""Is it faster, is it as good, can I trust it: each answered with one sentence made of the rows."""

from __future__ import annotations

from evaluation.comparison import Comparison
from evaluation.comparison.roofline import realised, roof
from evaluation.report import formatting, speed_summary
from evaluation.verdict.gates import recommended


def questions(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Each question with its answer."""
    return (
        ("Is it faster?", _beside_theory(speed_summary.answer(comparison), comparison)),
        ("Is it as good?", _as_good(comparison)),
        ("Can I trust it?", _trust(comparison)),
    )


def _beside_theory(answer: str, comparison: Comparison) -> str:
    """The measured speed, with what the fewer operations or bytes alone would give, and what memory would allow."""
    found, near = realised(comparison), roof(comparison)
    return " ".join((answer, *(f"{message}." for message in (found.sentence if found else "", near) if message)))


def _as_good(comparison: Comparison) -> str:
    gated = [row for row in comparison.rows if row.compared == "difference" and row.verdict.status != "not gated"]
    named = {
        status: ", ".join(f"{row.title} ({row.verdict.gate})" for row in gated if row.verdict.status == status)
        for status in ("fail", "inconclusive", "pass")
    }
    if named["fail"]:
        return f"No: {named['fail']} failed."
    if named["inconclusive"]:
        more = any(row.verdict.n_needed for row in gated)
        return f"Not decided: {named['inconclusive']} {'needs more samples' if more else 'could not be judged'}."
    return f"Yes: {named['pass']}." if gated else "Not judged: no quality gate was set."


def _advised(comparison: Comparison) -> int:
    """Units with which an unchanged model passes all the quality gates together four times in five; 0: not known."""
    gated = [row for row in comparison.rows if row.compared == "difference" and row.gate]
    return max((recommended(row, 0.8 ** (1 / len(gated))) for row in gated), default=0)


def _how_many(comparison: Comparison, needed: int) -> str:
    """How as many units come about, in brackets."""
    if 0 < comparison.holds < needed:
        return f" (the evaluation data hold {comparison.holds})"
    return f" (evaluate.samples: {needed})" if comparison.recipe else f" (--samples {needed})"


def _trust(comparison: Comparison) -> str:
    counts = sorted({row.contrast.n for row in comparison.rows if row.compared == "difference"})
    parts = []
    if counts:
        span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        parts.append(f"quality rests on {span} units seen by both sides")
    if needed := _advised(comparison):
        how = _how_many(comparison, needed) if needed > max(counts, default=needed) else ""
        parts.append(
            f"with about {needed}{how} an unchanged model passes all quality gates, and one twice a margin away fails, in four of five runs"
        )
    speed = formatting.speed_of(comparison)
    if speed and speed.noise:
        noise = formatting.with_interval(
            f"{formatting.number(speed.noise.value, formatting.half_width(speed.noise))}×", speed.noise
        )
        parts.append(f"the baseline timed against itself gives {noise}")
    count = len(comparison.warnings)
    parts.append(f"{count} warning{'' if count == 1 else 's'}" if count else "no warnings")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."
