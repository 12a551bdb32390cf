"""Gates tried on a finished run's own units: the population is the run, its candidate made truly as much worse as is wanted."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binom

from compress.catalogue import find_metric
from compress.recipe.gates import Gate
from evaluation.comparison import Row, samples
from evaluation.distances import mmd
from evaluation.distances.image_sets import paired, real
from evaluation.report import result
from evaluation.values import Estimate, Sample
from evaluation.verdict import statistics
from evaluation.verdict.gates import allowed, judge, message, recommended
from evaluation.verdict.statistics import Z80, Z

MULTIPLES: tuple[float, ...] = tuple(np.arange(0, 2.6, 0.25).tolist())  # of the margin: how far a curve goes
FASTER = 1.1  # what counts as one margin of a speed-up gate: "at least 8×" is two margins from a truth of 8 ÷ 1.1
AT_MOST, AT_LEAST = 0.025, 0.8  # what rule 13 promises
CHANCE = 1e-3  # how seldom a kept promise may look broken
CURVE, LARGE = 500, 400  # repetitions of a curve's point, and at the n that is recommended

Truths = Sequence[float]
Observe = Callable[[Sample, Sample, Truths, np.random.Generator], Iterable[Estimate]]
Units = tuple[NDArray[Any], NDArray[Any]]  # which units were drawn [n], and whose sides are swapped [n]


@dataclass(frozen=True)
class Case:
    """A gate, and a run's units as the population that it is tried on.

    observe: drawn candidate and baseline, and true contrasts to what the metric makes of a candidate that is so much worse.
    edge: the true contrast at the margin. sides: 2 where the other way off is as bad.
    runs: repetitions at the margin, as many as its interval's price allows.
    """

    row: Row
    metric: Any
    baseline: Sample
    candidate: Sample
    observe: Observe
    edge: float
    sides: int
    runs: int

    @property
    def gate(self) -> Gate:
        assert self.row.gate is not None  # `case_of` takes no other row
        return self.row.gate

    @property
    def title(self) -> str:
        return f"{self.metric.title}, {message(self.gate, self.metric)}"

    @property
    def n(self) -> int:
        return len(self.baseline.values)

    def truth(self, multiple: float) -> float:
        """The true contrast that is so many margins from no change; of a speed, from `FASTER` times what is asked."""
        return self.edge * (multiple if self.metric.compared == "difference" else FASTER ** (1 - multiple))


@dataclass(frozen=True)
class Seen:
    """The verdicts on one gate: along the curve and at the margin (a side each) at the run's n, and at twice the margin.

    advised: the n that the report recommends, for a speed that of the run. enough: the n that fails twice the margin.
    """

    case: Case
    advised: int
    curve: list[Counter[str]]
    margin: list[Counter[str]]
    twice: Counter[str]
    enough: int


@dataclass(frozen=True)
class Study:
    """All gates of a run, and how often an unchanged model passes those of quality together at the advised n."""

    name: str
    advised: int
    together: Counter[str]
    seen: tuple[Seen, ...]


# ---------------------------------------------------------------- candidates that are truly as much worse as is wanted


def means(metric: Any) -> Observe:
    def observe(candidate: Sample, baseline: Sample, truths: Truths, rng: np.random.Generator) -> Iterable[Estimate]:
        found = metric.contrast(candidate, baseline)  # adding to each unit adds to the whole interval
        return [replace(found, value=found.value + t, low=found.low + t, high=found.high + t) for t in truths]

    return observe


def shares(metric: Any, pool: NDArray[Any]) -> Observe:
    """Units are lost whole, at the rate that costs as much as is wanted."""

    def observe(candidate: Sample, baseline: Sample, truths: Truths, rng: np.random.Generator) -> Iterable[Estimate]:
        chance = rng.random(len(candidate.values))
        for truth in truths:
            lost = chance < -truth / pool.mean()
            yield metric.contrast(replace(candidate, values=np.where(lost, 0.0, candidate.values)), baseline)

    return observe


def perplexities(metric: Any, pool: NDArray[Any]) -> Observe:
    """Every document's nats grow by one factor."""
    surprise = pool[:, 0].sum() / pool[:, 1].sum()

    def observe(candidate: Sample, baseline: Sample, truths: Truths, rng: np.random.Generator) -> Iterable[Estimate]:
        for truth in truths:
            factor = np.log(np.exp(surprise) + truth) / surprise
            yield metric.contrast(replace(candidate, values=candidate.values * (factor, 1, 1)), baseline)

    return observe


def distances(metric: Any, pool: NDArray[Any], reference: NDArray[Any]) -> Observe:
    """Every image moves the way in which generated ones already differ from real ones, on the sphere it lies on."""
    kernel, away = mmd.cubic(pool, reference), pool.mean(axis=0) - reference.mean(axis=0)

    def moved(rows: NDArray[Any], by: float) -> NDArray[Any]:
        there = rows + by * away
        return there * (np.linalg.norm(rows, axis=1) / np.linalg.norm(there, axis=1))[:, None]

    def discrepancy(by: float) -> float:
        """Of the whole population, but for what only the real images add. Exact: two draws may be one unit."""
        rows = moved(pool, by)
        return float(kernel(rows, rows).mean() - 2 * kernel(rows, reference).mean())

    @functools.cache
    def far(truth: float) -> float:
        wanted = discrepancy(0) + truth
        return float(brentq(lambda by: discrepancy(by) - wanted, 0, 20, xtol=1e-7)) if truth else 0.0

    def observe(candidate: Sample, baseline: Sample, truths: Truths, rng: np.random.Generator) -> Iterable[Estimate]:
        for truth in truths:
            yield metric.contrast(replace(candidate, values=moved(candidate.values, far(truth))), baseline)

    return observe


def speeds(metric: Any, now: float) -> Observe:
    """Every block takes longer by one factor."""

    def observe(candidate: Sample, baseline: Sample, truths: Truths, rng: np.random.Generator) -> Iterable[Estimate]:
        for truth in truths:
            factor = truth / now if metric.better == "higher" else now / truth
            yield metric.contrast(replace(candidate, values=candidate.values * factor), baseline)

    return observe


def case_of(row: Row, baseline: Sample, candidate: Sample) -> Case:
    """A gated row's case.

    Raises:
        ValueError: nothing here knows how to make a candidate worse by such a gate.
    """
    metric, gate = find_metric(row.metric), row.gate
    if gate is None:
        raise ValueError(f"{row.metric}: has no gate")
    pool = np.concatenate([baseline.values, candidate.values])
    if metric.compared == "ratio" and gate.ratio is not None:
        now = metric.contrast(candidate, baseline).value
        return Case(row, metric, baseline, candidate, speeds(metric, now), gate.ratio, 1, 4000)
    if metric.name == "kid" and paired(baseline):
        observe, runs = distances(metric, pool, real(baseline)), 1000
    elif metric.name == "perplexity":
        observe, runs = perplexities(metric, pool), 2000
    elif metric.statistic in (statistics.SHARE, statistics.PROPORTION):
        observe, runs = shares(metric, pool), 10_000
    elif metric.statistic in (statistics.MEAN, statistics.MEAN):
        observe, runs = means(metric), 2000
    else:
        raise ValueError(f"{row.metric}: no way is known to make its candidate worse")
    edges = [edge for edge in allowed(gate, metric, measured(row, metric, Sample((), pool)))[:2] if math.isfinite(edge)]
    if len(edges) == 2 and metric.better != "same":
        raise ValueError(f"{row.metric}: no way is known to make its candidate better")
    return Case(row, metric, baseline, candidate, observe, edges[0], len(edges), runs)


# ---------------------------------------------------------------- verdicts on what was drawn


def draw(case: Case, n: int, rng: np.random.Generator) -> Units:
    return rng.integers(case.n, size=n), rng.random(n) < 0.5


def verdicts(case: Case, units: Units, multiples: Sequence[float], rng: np.random.Generator) -> list[str]:
    """What the gate says of the drawn units for each true change, in margins."""
    candidate, baseline = sides(case, units)
    gate, score = case.row.gate, measured(case.row, case.metric, baseline)
    truths = [case.truth(multiple) for multiple in multiples]
    seen = case.observe(candidate, baseline, truths, rng)
    return [judge(gate, case.metric, score, contrast, case.row.noise).status for contrast in seen]


def measured(row: Row, metric: Any, baseline: Sample) -> Estimate:
    """What a relative margin is a share of; no other gate asks, and the interval costs much."""
    gate = row.gate
    relative = gate is not None and any(str(margin).endswith("%") for margin in (gate.within, gate.worse_by))
    return metric.score(baseline) if relative else row.baseline


def sides(case: Case, units: Units) -> tuple[Sample, Sample]:
    """Candidate and baseline of the drawn units. Swapping a pair keeps its spread and makes no change the truth; the two
    sides of a speed are no twins, and stay."""
    index, swaps = units
    one, other = case.candidate.values[index], case.baseline.values[index]
    if case.metric.compared == "difference":
        swap = swaps.reshape(-1, *(1,) * (one.ndim - 1))
        one, other = np.where(swap, other, one), np.where(swap, one, other)
    beside = None if case.baseline.reference is None else case.baseline.reference[index]
    names = tuple(map(str, index))
    return (
        replace(case.candidate, unit_ids=names, values=one, reference=beside),
        replace(case.baseline, unit_ids=names, values=other, reference=beside),
    )


def simulate(case: Case, multiples: Sequence[float], n: int, runs: int, seed: int = 0) -> list[Counter[str]]:
    """Counts of verdicts at each true change, in margins, over `runs` draws of n units."""
    rng = np.random.default_rng(seed)
    found = [verdicts(case, draw(case, n, rng), multiples, rng) for _ in range(runs)]
    return [Counter(seen) for seen in zip(*found, strict=True)]


def together(cases: Sequence[Case], n: int, runs: int, seed: int = 1) -> Counter[str]:
    """How often gates on the same units all pass a model that is no different."""
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    for _ in range(runs):
        units = draw(cases[0], n, rng)
        passed = all(verdicts(case, units, (0.0,), rng) == ["pass"] for case in cases)
        found["pass" if passed else "other"] += 1
    return found


def seldom(seen: Counter[str], status: str) -> bool:
    """Whether no more than the promised share may lie behind what was seen."""
    return bool(binom.sf(seen[status] - 1, seen.total(), AT_MOST) > CHANCE)


def often(seen: Counter[str], status: str) -> bool:
    return bool(binom.cdf(seen[status], seen.total(), AT_LEAST) > CHANCE)


def advised_n(cases: Sequence[Case]) -> int:
    """What the report recommends for quality gates."""
    return max(recommended(case.row, AT_LEAST ** (1 / len(cases))) for case in cases)


def enough(case: Case, n: int, twice: Counter[str]) -> int:
    """The n at which twice the margin fails as often as promised: from n where it was seen, by the normal law, and tried."""
    for _ in range(6):
        share = twice["fail"] / twice.total()
        if share >= AT_LEAST:
            return n
        n = math.ceil(1.02 * n * ((Z + Z80) / (Z + float(ndtri(min(0.79, max(0.2, share)))))) ** 2)
        (twice,) = simulate(case, (2.0,), n, LARGE, seed=4)
    return 0


def study(folder: Path) -> Study:
    """Everything about the gates of a run.

    Raises:
        ValueError: none is of quality, or they rest on different units.
    """
    run = result.from_dict(json.loads((folder / "result.json").read_text()))
    cases = [case_of(row, *samples.read(folder / "samples", row.metric)) for row in run.rows if row.gate]
    quality = [case for case in cases if case.metric.quality]
    if len({case.baseline.unit_ids for case in quality}) != 1:
        raise ValueError(f"{folder}: its quality gates do not rest on the same units, or there are none")
    advised, found = advised_n(quality), []
    for case in cases:
        n = advised if case.metric.quality else case.n
        (twice,) = simulate(case, (2.0,), n, LARGE, seed=2)
        curve = simulate(case, MULTIPLES, case.n, CURVE)
        margin = simulate(case, (1.0, -1.0)[: case.sides], case.n, case.runs, seed=3)
        found.append(Seen(case, n, curve, margin, twice, enough(case, n, twice)))
    return Study(run.name, advised, together(quality, advised, LARGE), tuple(found))
