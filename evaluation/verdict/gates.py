"""Gates: a margin and an interval in, a verdict out. Pass if the whole interval is inside, fail if wholly outside."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

from compress.catalogue import find_metric
from compress.params import Params
from compress.recipe.gates import Gate
from evaluation.comparison import Row, Verdict
from evaluation.metrics import Metric
from evaluation.values import Better, Compared, Estimate
from evaluation.verdict.quantities import Amount, amount
from evaluation.verdict.quantities import units as units_of
from evaluation.verdict.statistics import Z80, Z

FEWEST = 25
# Fewest units that a verdict on quality rests on. A 95% interval of normal units' mean lay wholly to one side of the truth in 12% of 1500
# draws of 3, 6% of 4, 3.4% of 5 and 6, and in 2.9% of 8, which is what more units give (2.0% to 3.1%, of 10 to 64).
FEWEST_UNITS = 8
POWER = ((Z + Z80) / Z) ** 2  # from an interval that touches the margin half the time to one that clears it 80%
OWN = ("at_least", "at_most")  # hold the candidate's own value, whatever the baseline's


class Judged(Protocol):
    """What a metric and a row know alike, and a gate asks of either."""

    @property
    def title(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def better(self) -> Better: ...

    @property
    def compared(self) -> Compared: ...


class Gated(Judged, Protocol):
    """What a verdict asks of a metric beside that."""

    @property
    def quality(self) -> bool: ...


class Allowed(NamedTuple):
    """What passes: from `low` to `high` of the row's contrast, or of the candidate's own value. An open side is infinite."""

    low: float
    high: float
    of: Literal["contrast", "candidate"] = "contrast"


def problems(gate: Gate, metric: Metric[Params]) -> str:
    """What is wrong with a gate on this metric, in words, or "". Needs no model, so that a plan can ask."""
    if why := gate.miscounted():
        return why
    (given,) = gate.given
    if given not in metric.gate_words:
        return _not_its_word(given, metric)
    if gate.two_sided is False and metric.better == "same":
        return f"{metric.name} has no worse direction: use within, both sides"
    if gate.two_sided is not None and given != "within":
        return f"two_sided says how `within` is meant; {given} has one side"
    return _amount_problem(given, getattr(gate, given), metric)


def example(metric: Metric[Params]) -> str:
    """A gate on a metric that can be judged, as a recipe has it."""
    word = metric.gain or ("worse_by" if "worse_by" in metric.gate_words else "within")
    size = "2" if word == metric.gain else "0.01" if metric.own and metric.better == "lower" else "5%"
    return f"write for instance gates: {{{metric.name}: {{{word}: {size}}}}}"


def _not_its_word(given: str, metric: Metric[Params]) -> str:
    """Why this bound is none for the metric, and which would be."""
    if given == "worse_by":
        return f"{metric.name} has no worse direction: use within, both sides"
    if not metric.gain:
        return f"{given} is a ratio, and {metric.name} is compared by its difference: use within or worse_by"
    return f"{metric.name} does not get {given}: use {metric.gain}, which is the same ratio"


def _amount_problem(given: str, margin: str | float, metric: Metric[Params]) -> str:
    found = amount(margin, metric.unit)
    if found is None:
        units = f", or one with its unit ({', '.join(units_of(metric.unit))})" if metric.unit else ""
        return f"{margin!r} is no margin: write 1% or a number{units}"
    if given in OWN and found.relative:
        return f"{given} is about the candidate's own value, not about a share of the baseline's: write a number"
    if not math.isfinite(found.size) or (found.size < 0 and given not in OWN):
        return f"a margin is a finite number from 0 up, not {margin}"
    if given == "at_most" and metric.compared == "ratio" and found.size <= 0:
        return f"{metric.name} is always above 0, so at most {margin} can never hold"
    if found.relative and metric.own and metric.better == "lower":
        return f"{metric.name} of the original itself is 0, and so is every share of it: write a number, not {margin}"
    return _never(given, found, metric)


def _never(given: str, margin: Amount, metric: Metric[Params]) -> str:
    """Why a bound can never hold, or never be broken, whatever is measured, or ""."""
    low, high = metric.ends
    ends = (
        f"{metric.name} lies between {low:g} and {high:g}"
        if math.isfinite(high)
        else f"{metric.name} is at least {low:g}"
    )
    words = f"{given.replace('_', ' ')} {margin.size:g}"
    if (given == "at_least" and margin.size > high) or (given == "at_most" and margin.size < low):
        return f"{ends}, so {words} can never hold"
    if (given == "at_least" and margin.size <= low) or (given == "at_most" and margin.size >= high):
        return f"{ends}, so {words} always holds"
    if given in ("within", "worse_by") and not margin.relative and margin.size >= high - low:
        return f"{ends}, so {words} always holds"
    return ""


def judge(
    gate: Gate | None,
    metric: Gated,
    baseline: Estimate,
    contrast: Estimate,
    noise: Estimate | None = None,
    *,
    candidate: Estimate | None = None,
) -> Verdict:
    """Hold a contrast to its gate.

    Args:
        contrast: the difference candidate − baseline, or the ratio, above 1 better.
        noise: the baseline against itself in the same run; a speed within it proves nothing.
        candidate: its own value, which gates in `OWN` are about.

    Raises:
        ValueError: such a gate was given no candidate.
    """
    if gate is None:
        return Verdict("not gated")
    words, edges = message(gate, metric), allowed(gate, metric, baseline)
    if metric.compared == "difference" and baseline.value < 0 and _margin(gate, metric).relative:
        why = f"the baseline's value is {baseline.value:.4g}, and a share of a negative one bounds nothing: gate by a number"
        return Verdict("inconclusive", words, why)
    held = contrast if edges.of == "contrast" else candidate
    if held is None:
        raise ValueError(f"{words}: of what value?")
    verdict = _few_enough(_decide(held, edges, words), metric, held)
    if noise is not None and noise.note and not math.isnan(held.value):
        # What was measured on one side was not what the gate is about: how far it lies from the margin says nothing either.
        return Verdict("inconclusive", words, noise.note)
    if verdict.status == "pass" and noise is not None and gate.ratio is not None:
        return _above_noise(verdict, contrast, noise, gate.ratio)
    return verdict


def _few_enough(verdict: Verdict, metric: Gated, held: Estimate) -> Verdict:
    """The verdict, open where a quality metric's interval rests on too few units to know how they scatter: then it lies anywhere,
    however narrow it is. Speeds are contrasted by order statistics, and their blocks have a floor of their own."""
    if not metric.quality or held.n >= FEWEST_UNITS or math.isnan(held.low) or math.isnan(held.high):
        return verdict
    why = f"rests on {held.n} units, and an interval of fewer than {FEWEST_UNITS} decides nothing"
    return Verdict("inconclusive", verdict.gate, why, max(FEWEST_UNITS, verdict.n_needed))


def allowed(gate: Gate, metric: Judged, baseline: Estimate) -> Allowed:
    """What the gate lets pass, on the axis of a row's contrast or of the candidate's own value.

    Args:
        metric: a metric or a row, which know the same of `better` and `compared`.
    """
    if gate.ratio is not None:
        return Allowed(gate.ratio, math.inf)
    if gate.at_least is not None or gate.at_most is not None:
        low, high = _size(gate.at_least, metric, -math.inf), _size(gate.at_most, metric, math.inf)
        return Allowed(low, high, "candidate")
    size, relative = _margin(gate, metric)
    margin = abs(baseline.value) * size if relative else size
    both, worse_is_less = gate.within is not None and gate.two_sided is not False, metric.better == "higher"
    low = -margin if both or worse_is_less else -math.inf
    high = margin if both or not worse_is_less else math.inf
    return Allowed(low, high) if metric.compared == "difference" else _as_ratio(low, high, baseline, worse_is_less)


def allowed_of(row: Row) -> tuple[float, float] | None:
    """What the row's gate lets pass, on the axis of its contrast; None without a gate."""
    if row.gate is None:
        return None
    edges, base = allowed(row.gate, row, row.baseline), row.baseline.value
    if edges.of == "contrast":
        return edges.low, edges.high
    if row.compared == "difference":
        return edges.low - base, edges.high - base
    if not base > 0:
        return None
    if row.better == "higher":
        return max(0.0, edges.low / base), edges.high / base
    return base / edges.high, base / edges.low if edges.low > 0 else math.inf


def message(gate: Gate, metric: Judged) -> str:
    """The gate in words."""
    if gate.ratio is not None:
        return f"at least {gate.ratio:g}×" + "".join(f" {word}" for word in gate.given if word != "speedup")
    if gate.at_least is not None:
        return f"itself at least {_size(gate.at_least, metric, -math.inf):g} {metric.unit}".strip()
    if gate.at_most is not None:
        return f"itself at most {_size(gate.at_most, metric, math.inf):g} {metric.unit}".strip()
    size, relative = _margin(gate, metric)
    margin = f"{100 * size:g}%" if relative else f"{size:g} {metric.unit}".strip()
    both = gate.within is not None and gate.two_sided is not False
    return f"within {margin}, both sides" if both else f"not worse by {margin}"


def _as_ratio(low: float, high: float, baseline: Estimate, worse_is_less: bool) -> Allowed:
    """A change of the value as a ratio: candidate ÷ baseline of a rate, baseline ÷ candidate of a time."""
    least, most = (1 + edge / baseline.value if baseline.value else math.nan for edge in (low, high))
    if worse_is_less:
        return Allowed(max(0.0, least), most)
    return Allowed(1 / most if most > 0 else math.inf, 1 / least if least > 0 else math.inf)


def _above_noise(verdict: Verdict, contrast: Estimate, noise: Estimate, least: float) -> Verdict:
    floor = max(noise.high, 1 / noise.low)
    if contrast.low <= floor and least > 1:
        return Verdict("inconclusive", verdict.gate, f"no more than the noise floor of {floor:.3f}×", contrast.n * 4)
    return verdict


def _margin(gate: Gate, metric: Judged) -> Amount:
    given = gate.within if gate.within is not None else gate.worse_by
    return amount(0.0 if given is None else given, metric.unit) or Amount(0.0)


def _size(given: str | float | None, metric: Judged, otherwise: float) -> float:
    """A bound in the metric's unit; `otherwise` where none is given."""
    found = None if given is None else amount(given, metric.unit)
    return otherwise if found is None else found.size


def _decide(held: Estimate, edges: Allowed, words: str) -> Verdict:
    low, high = held.low, held.high
    if any(map(math.isnan, (low, high, *edges[:2]))):
        return Verdict("inconclusive", words, held.note or "no interval")
    if low >= edges.low and high <= edges.high:
        return Verdict("pass", words)
    if high < edges.low or low > edges.high:
        return Verdict("fail", words, f"the whole interval [{low:.4g}, {high:.4g}] is outside")
    why = f"[{low:.4g}, {high:.4g}] straddles the margin"
    return Verdict("inconclusive", words, why, _needed(low, high, edges, held.n))


def _needed(low: float, high: float, edges: Allowed, n: int) -> int:
    """About how many units bring the whole interval to one side four times in five, its width falling as 1/√n."""
    centre, half = (low + high) / 2, (high - low) / 2
    room = min(abs(centre - edge) for edge in edges[:2] if math.isfinite(edge))
    return 100 * n if room * 10 < half else math.ceil(n * (half / room) ** 2 * POWER)


def recommended(row: Row, share: float = 0.8) -> int:
    """About how many units let an unchanged model pass this row's gate in `share` of runs, and one twice the margin away fail it
    in four of five; 0 where that is not known.

    An unchanged model's contrast is centred on no change and as wide as this one's, its width falling as 1/√n. Of fewer than
    `FEWEST` units that says nothing.
    """
    from scipy.special import ndtri

    edges, nothing = allowed_of(row), 0.0 if row.compared == "difference" else 1.0
    if edges is None or not edges[0] < nothing < edges[1]:
        return 0
    half = (row.contrast.high - row.contrast.low) / 2
    sides = [abs(edge - nothing) for edge in edges if math.isfinite(edge)]
    quantile = float(ndtri(share if len(sides) == 1 else (1 + share) / 2))
    margin = min(sides)
    if not margin > 0 or not math.isfinite(half):
        return 0
    unchanged = row.contrast.n * (half / margin * (Z + quantile) / Z) ** 2
    spread_at = find_metric(row.metric).statistic.spread_at
    broken = ((Z + Z80) * spread_at(2 * margin) / margin) ** 2 if spread_at else 0.0
    return max(FEWEST, math.ceil(unchanged), math.ceil(broken))
