"""Gates: a margin and an interval in, a verdict out. Pass if the whole interval is inside, fail if wholly outside."""

from __future__ import annotations

import math
from typing import Any

from compress.recipe import Gate
from evaluation.scores import Estimate, Verdict

POWER = ((1.96 + 0.84) / 1.96) ** 2  # from an interval that touches the margin half the time to one that clears it 80%
BOUNDS = ("within", "worse_by", "speedup")


def problems(gate: Gate, metric: Any) -> str:
    """What is wrong with a gate on this metric, in words, or "". Needs no model, so that a plan can ask."""
    given = [name for name in BOUNDS if getattr(gate, name) is not None]
    if len(given) != 1:
        return f"give exactly one of {', '.join(BOUNDS)}" + (f", not {' and '.join(given)}" if given else "")
    if given == ["speedup"] and metric.compared != "ratio":
        return f"speedup is a ratio, and {metric.name} is compared by its difference: use within or worse_by"
    if metric.better == "same" and (given == ["worse_by"] or gate.two_sided is False):
        return f"{metric.name} has no worse direction: use within, both sides"
    margin = getattr(gate, given[0])
    if isinstance(margin, str) and _parse(margin) is None:
        return f"{margin!r} is no margin: write 1% or a number"
    size = margin if isinstance(margin, (int, float)) else (_parse(margin) or (0.0, False))[0]
    if not math.isfinite(size) or size < 0:
        return f"a margin is a finite number from 0 up, not {margin}"
    return ""


def judge(gate: Gate | None, metric: Any, baseline: Estimate, contrast: Estimate, noise: Estimate | None) -> Verdict:
    """Hold a contrast to its gate.

    Args:
        contrast: the difference candidate − baseline, or for ratios baseline ÷ candidate.
        noise: the baseline against itself in the same run; a speed within it proves nothing.
    """
    if gate is None:
        return Verdict("not gated")
    if gate.speedup is not None:
        return _speedup(gate.speedup, contrast, noise)
    low, high = _as_change(contrast, metric, baseline)
    margin, words = _margin(gate.within if gate.within is not None else gate.worse_by, baseline, metric)
    if gate.within is not None and gate.two_sided is not False:
        return _decide(low, high, -margin, margin, f"within {words}, both sides", contrast.n)
    if metric.better == "higher":
        return _decide(low, high, -margin, math.inf, f"not worse by {words}", contrast.n)
    return _decide(low, high, -math.inf, margin, f"not worse by {words}", contrast.n)


def _speedup(least: float, contrast: Estimate, noise: Estimate | None) -> Verdict:
    verdict = _decide(contrast.low, contrast.high, least, math.inf, f"at least {least:g}×", contrast.n)
    floor = max(noise.high, 1 / noise.low) if noise else 1.0
    if verdict.status == "pass" and contrast.low <= floor and least > 1:
        return Verdict("inconclusive", verdict.gate, f"no more than the noise floor of {floor:.3f}×", contrast.n * 4)
    return verdict


def _as_change(contrast: Estimate, metric: Any, baseline: Estimate) -> tuple[float, float]:
    """A contrast as an interval of candidate − baseline."""
    if metric.compared == "difference":
        return contrast.low, contrast.high
    if metric.better == "higher":  # candidate ÷ baseline
        return baseline.value * (contrast.low - 1), baseline.value * (contrast.high - 1)
    return baseline.value * (1 / contrast.high - 1), baseline.value * (1 / contrast.low - 1)


def _margin(given: str | float | None, baseline: Estimate, metric: Any) -> tuple[float, str]:
    size, relative = _parse(str(given)) or (0.0, False)
    return (abs(baseline.value) * size, f"{100 * size:g}%") if relative else (size, f"{size:g} {metric.unit}".strip())


def _parse(text: str) -> tuple[float, bool] | None:
    """A margin as (size, whether it is relative): "1%" is (0.01, True)."""
    try:
        return (float(text[:-1]) / 100, True) if text.endswith("%") else (float(text), False)
    except ValueError:
        return None


def _decide(low: float, high: float, least: float, most: float, words: str, n: int) -> Verdict:
    if math.isnan(low) or math.isnan(high):
        return Verdict("inconclusive", words, "no interval")
    if low >= least and high <= most:
        return Verdict("pass", words)
    if high < least or low > most:
        return Verdict("fail", words, f"the whole interval [{low:.4g}, {high:.4g}] is outside")
    return Verdict(
        "inconclusive", words, f"[{low:.4g}, {high:.4g}] straddles the margin", _needed(low, high, least, most, n)
    )


def _needed(low: float, high: float, least: float, most: float, n: int) -> int:
    """About how many units bring the whole interval to one side four times in five, its width falling as 1/√n."""
    centre, half = (low + high) / 2, (high - low) / 2
    room = min(abs(centre - edge) for edge in (least, most) if math.isfinite(edge))
    return 100 * n if room * 10 < half else math.ceil(n * (half / room) ** 2 * POWER)
