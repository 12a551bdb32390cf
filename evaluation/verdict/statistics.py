"""Intervals: paired bootstrap for means and ratios, jackknife for distances between distributions. Arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from evaluation.values import Estimate, Sample, Statistic

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z, Z80 = 1.959964, 0.841621  # the 97.5% and the 80% point of the normal distribution
ROUNDS = 4000
NOTHING = "no item was scored"
Floats: TypeAlias = "NDArray[np.float64]"


def bootstrap(statistic: Callable[[NDArray[np.int64]], Floats], n: int, value: float, seed: int = 0) -> Estimate:
    """95% interval of a statistic of resampled units, from percentiles widened for few units.

    Plain percentiles of n = 20 hold a mean only 92 times in 100. Source: Hesterberg, "What Teachers Should Know About the
    Bootstrap" (2015), expanded percentiles.

    Args:
        statistic: indices [rounds, n] to values [rounds]; both arms of a pair take the same units.
    """
    if n < 2:
        return too_few(value, n)
    draws = np.random.default_rng(seed).integers(n, size=(ROUNDS, n))
    tail = _tail(n)
    low, high = np.quantile(statistic(draws), (tail, 1 - tail))
    return Estimate(value, float(low), float(high), n)


def too_few(value: float, n: int) -> Estimate:
    """One unit's value, or that of none: no gate is decided by it."""
    return Estimate(value if n else math.nan, math.nan, math.nan, n, "one unit has no interval" if n else NOTHING)


def _tail(n: int) -> float:
    """The share of resamples to leave out on each side: 2.5% for many units, less for few."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(stdtrit(n - 1, 0.025) * np.sqrt(n / (n - 1)))) if n > 1 else 0.0


def mean(values: Floats) -> Estimate:
    """Mean of units and its interval."""
    if len(values) < 2:
        return too_few(float(values.sum()), len(values))
    return bootstrap(lambda draw: values[draw].mean(axis=1), len(values), float(values.mean()))


def mean_difference(candidate: Floats, baseline: Floats) -> Estimate:
    """Mean of paired differences candidate − baseline."""
    return mean(candidate - baseline)


def share_difference(candidate: Floats, baseline: Floats) -> Estimate:
    """Mean of paired differences of shares in 0..1, with an interval that does not vanish where hardly a pair differs.

    Wilson's intervals of what was gained and what was lost, put together by square and add with their correlation (after
    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data", 1998).
    Resampling pairs that all agree would claim certainty at any n.
    """
    pairs = candidate - baseline
    if len(pairs) < 2:
        return too_few(float(pairs.sum()), len(pairs))
    gain, loss = float(np.maximum(pairs, 0).mean()), float(np.maximum(-pairs, 0).mean())
    (least_gain, most_gain), (least_loss, most_loss) = _wilson(gain, len(pairs)), _wilson(loss, len(pairs))
    # What one pair gains no pair loses: the shares' errors have a correlation of −r, their difference's parts of +r.
    r = np.sqrt(gain * loss / max((1 - gain) * (1 - loss), 1e-12))
    down, up = gain - least_gain, most_gain - gain
    more, less = most_loss - loss, loss - least_loss
    low, high = (float(np.sqrt(a * a + 2 * r * a * b + b * b)) for a, b in ((down, more), (up, less)))
    return Estimate(gain - loss, gain - loss - low, gain - loss + high, len(pairs))


def _wilson(share: float, n: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson, "Probable inference", 1927)."""
    middle, half = share + Z**2 / (2 * n), Z * np.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    return float((middle - half) / (1 + Z**2 / n)), float((middle + half) / (1 + Z**2 / n))


def mcnemar(candidate: Floats, baseline: Floats) -> float:
    """Two-sided p-value of two proportions of the same units, values 0 or 1, being the same; 1 where no pair differs.

    The exact test: of the pairs that differ, won ones are binomial with ½. Source: McNemar, "Note on the sampling error of the
    difference between correlated proportions or percentages" (1947).
    """
    from scipy.special import bdtr

    won, lost = _discordant(candidate, baseline)
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5))) if won + lost else 1.0


def _discordant(candidate: Floats, baseline: Floats) -> tuple[int, int]:
    """How many units the candidate won, and how many it lost."""
    return int((candidate > baseline).sum()), int((candidate < baseline).sum())


def median_ratio(baseline: Floats, candidate: Floats) -> Estimate:
    """Median of paired ratios baseline ÷ candidate, between two of the ratios themselves.

    Order statistics hold the median 95 times in 100 whatever the ratios' law (of fewer than six, from least to most: 94 in 100
    for five). Times have a long tail: a stalled block is often missing from a draw of 20, and a bootstrap of means then claims
    too much. Source: Conover, "Practical Nonparametric Statistics" (1999), 3.2.
    """
    from scipy.special import bdtr

    ratios, n = np.sort(baseline / candidate), len(baseline)
    if n < 2:
        return too_few(float(ratios.sum()), n)
    outside = max(0, sum(bool(bdtr(k, n, 0.5) <= 0.025) for k in range(n // 2)) - 1)  # ratios left out on each side
    middle = float(
        np.exp(np.median(np.log(ratios)))
    )  # of an even count the geometric mean, so that turning over turns it over
    return Estimate(middle, float(ratios[outside]), float(ratios[n - 1 - outside]), n)


def geometric_ratio(baseline: Floats, candidate: Floats) -> Estimate:
    """Geometric mean of paired ratios baseline ÷ candidate."""
    logs = np.log(baseline / candidate)
    found = mean(logs)
    return Estimate(float(np.exp(found.value)), float(np.exp(found.low)), float(np.exp(found.high)), found.n)


def quotient(top: Estimate, bottom: Estimate) -> Estimate:
    """Ratio of two positive estimates that were measured apart, its interval from theirs.

    The method of variance estimates recovery on logarithms: exact for normal, independent errors, and it keeps each
    interval's asymmetry. Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008).
    """
    value = top.value / bottom.value
    down = np.hypot(np.log(top.value / top.low), np.log(bottom.high / bottom.value))
    up = np.hypot(np.log(top.high / top.value), np.log(bottom.value / bottom.low))
    return Estimate(value, float(value * np.exp(-down)), float(value * np.exp(up)), min(top.n, bottom.n))


def ratio_of_sums(top: Floats, bottom: Floats, transform: Callable[[Floats], Floats]) -> Estimate:
    """`transform(Σ top ÷ Σ bottom)` over resampled units; for perplexity and its like."""
    value = float(transform(np.array(top.sum() / bottom.sum())))
    return bootstrap(lambda draw: transform(top[draw].sum(axis=1) / bottom[draw].sum(axis=1)), len(top), value)


def jackknife(value: float, left_out: Floats, note: str = "") -> Estimate:
    """Interval of a statistic from its values with each unit left out [n] (Efron and Stein, 1981).

    Unlike a naive bootstrap it does not move the estimate of a distance between distributions upwards.
    """
    n = len(left_out)
    spread = float(np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum()))
    return Estimate(value, value - Z * spread, value + Z * spread, n, note)


def median(values: Floats) -> Estimate:
    """Median of units and its interval."""
    return bootstrap(lambda draw: np.median(values[draw], axis=1), len(values), float(np.median(values)))


def _counted(sample: Sample) -> Estimate:
    """Median of the processes; no number where there was nothing to count."""
    return _uncounted(sample) or replace(median(sample.values), note=sample.note)


def _counted_ratio(candidate: Sample, baseline: Sample) -> Estimate:
    """Geometric mean of the processes' ratios baseline ÷ candidate."""
    return _uncounted(candidate) or _uncounted(baseline) or geometric_ratio(baseline.values, candidate.values)


def _uncounted(sample: Sample) -> Estimate | None:
    """No number, and why; None where there is one."""
    none = float("nan")
    return Estimate(none, none, none, len(sample.values), sample.note) if np.isnan(sample.values).any() else None


def exact(sample: Sample) -> Estimate:
    """The only unit's value, as it is."""
    value = float(sample.values[0])
    return Estimate(value, value, value, 1, sample.note)


def percentiles(sample: Sample) -> Estimate:
    """Median of a time's blocks, with the slow end beside it."""
    p50, p90, p99 = np.quantile(sample.values, (0.5, 0.9, 0.99))
    return replace(median(sample.values), note=f"p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f}")


def _noted_mean(sample: Sample) -> Estimate:
    found = mean(sample.values)
    return replace(found, note=sample.note or found.note)


def _noted_difference(candidate: Sample, baseline: Sample) -> Estimate:
    found = mean_difference(candidate.values, baseline.values)
    return replace(found, note=candidate.note or found.note)


def _proportion_difference(candidate: Sample, baseline: Sample) -> Estimate:
    won, lost = _discordant(candidate.values, baseline.values)
    note = f"McNemar p = {mcnemar(candidate.values, baseline.values):.2g} ({won} won, {lost} lost)"
    return replace(share_difference(candidate.values, baseline.values), note=note)


def _spread_of_share(change: float) -> float:
    """Standard deviation of a pair's difference where this share of the pairs changed, all one way."""
    return float(np.sqrt(abs(change) * (1 - min(1.0, abs(change)))))


def _exact_ratio(candidate: Sample, baseline: Sample) -> Estimate:
    value = float(baseline.values[0] / candidate.values[0])
    return Estimate(value, value, value, 1)


# What most metrics need. A time, a size and a memory are compared as baseline ÷ candidate, a rate the other way round.
MEAN = Statistic("difference", _noted_mean, _noted_difference)
SHARE = Statistic(
    "difference", _noted_mean, lambda c, b: share_difference(c.values, b.values), spread_at=_spread_of_share
)
PROPORTION = Statistic("difference", _noted_mean, _proportion_difference, spread_at=_spread_of_share)  # of 0 and 1
TIME = Statistic("ratio", percentiles, lambda c, b: median_ratio(b.values, c.values))
RATE = Statistic("ratio", lambda s: median(s.values), lambda c, b: median_ratio(c.values, b.values))
RESOURCE = Statistic("ratio", lambda s: median(s.values), lambda c, b: geometric_ratio(b.values, c.values))
RESOURCE_IF_COUNTED = Statistic("ratio", _counted, _counted_ratio)  # NaN where a side has none, and its note says why
EXACT = Statistic("ratio", exact, _exact_ratio)
