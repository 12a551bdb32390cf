"""Two runs compared with each other: what tonight's candidate is to the committed one, unit by unit where both kept samples."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compress.catalogue import find_metric
from compress.errors import NotComparable, Problem, UserError
from compress.recipe.gates import Gate
from evaluation.comparison import ENDPOINT, Comparison, Row, Side, Verdict, Worst, samples
from evaluation.comparison.examples import worst_of
from evaluation.values import Estimate, Sample
from evaluation.verdict import statistics
from evaluation.verdict.gates import judge, message, problems

# What makes two machines the same one for a speed: the processor and what of it was used.
MACHINE = ("processor", "flags", "cores", "logical_cores", "threads", "gpu")
VERSION = "version"  # of a metric, in its row's protocol
AGAIN = "measure the old run again"
OTHERWISE = "run both with the same settings"
FIXES = {
    "data": "give both recipes the same data.evaluate",
    VERSION: f"{AGAIN}: `pare run` of its recipe, whose stages are cached",
}
OF_RATIOS = "ratio of the two runs' ratios to their baselines"
DIGEST = re.compile("[0-9a-f]{64}")
NEITHER = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Run:
    """A comparison as its `result.json` tells it, and the folder of its samples."""

    comparison: Comparison
    samples: Path


def against(old: Run, new: Run, across_machines: bool, tolerance: str) -> Comparison:
    """The new run's candidate as the candidate, the old run's as the baseline.

    Quality is contrasted unit by unit from the samples, under the gates of the new run. Speeds of two runs were never
    interleaved, so what is compared is each run's ratio to the baseline that ran beside its candidate: drift of the machine
    between the runs meets both sides of it.

    Raises:
        UserError: the tolerance is no share.
        NotComparable: the runs differ in what they measured, on what, or (unless `across_machines`) on which machine.
    """
    one, other = old.comparison, new.comparison
    if not tolerance.endswith("%") or problems(Gate(worse_by=tolerance), find_metric("latency")):
        raise UserError(f"{tolerance!r} is no tolerance", place="--tolerance", fix="write a share, such as 10%")
    before = {row.metric: row for row in one.rows}
    both = [row for row in other.rows if row.metric in before]
    outdated = [row.metric for row in both if _outdated(row, before[row.metric])]
    shared = [row for row in both if row.metric not in outdated] or both
    differing = _differences(one, other, shared, before, across_machines)
    if differing:
        raise NotComparable(tuple(differing))
    rows, measured = [], {}
    for row in shared:
        if find_metric(row.metric).quality:
            measured[row.metric] = _candidates(old, new, row.metric)
            rows.append(_quality(before[row.metric], row, measured[row.metric]))
        else:
            rows.append(_cost(before[row.metric], row, across_machines, tolerance))
    rows += [_gone(row) for row in one.rows if row.gate and row.metric not in {r.metric for r in other.rows}]
    lost: Sequence[Worst] = worst_of(rows, measured, _texts(one, other))
    return replace(
        other,
        name=f"{other.name} against {one.name}" if one.name != other.name else f"{other.name} against its reference",
        baseline=replace(one.candidate, name="reference"),
        rows=tuple(rows),
        steps=(),
        controls=(),
        completions=(),
        worst=tuple(lost),
        warnings=(*_left_out(both, shared), *_warnings(one, other, before), *other.warnings),
    )


def _odd(row: Row, was: Row) -> list[str]:
    """What two rows of one metric were measured otherwise by: a cost is of some calls, however many samples there are, and what only the
    files tell of none."""
    metric = find_metric(row.metric)
    apart = {"samples", "seed", "data"} if metric.needs <= {"files"} else set() if metric.quality else {"samples"}
    named = {*was.protocol, *row.protocol} - apart
    return sorted(k for k in named if was.protocol.get(k) != row.protocol.get(k))


def _outdated(row: Row, was: Row) -> bool:
    """Whether a metric that neither run gates was measured by two of its versions, and otherwise alike."""
    return _odd(row, was) == [VERSION] and not row.gate and not was.gate


def _left_out(both: Sequence[Row], shared: Sequence[Row]) -> Iterator[str]:
    if names := [row.metric for row in both if row not in shared]:
        are = "are" if len(names) > 1 else "is"
        yield f"{', '.join(names)} {are} left out, measured by another version in each run: {AGAIN} to compare"


def _gone(row: Row) -> Row:
    """A gated metric that the new run no longer measures: what it does not show it has not passed."""
    why = "only the old run measured it"
    verdict = Verdict("inconclusive", message(row.gate, row) if row.gate else "", why)
    contrast = replace(NEITHER, note=why)
    return replace(row, baseline=row.candidate, candidate=NEITHER, contrast=contrast, noise=None, verdict=verdict)


def _differences(
    one: Comparison, other: Comparison, shared: Sequence[Row], before: Mapping[str, Row], across_machines: bool
) -> list[Problem]:
    """Everything that keeps the two apart, each with a remedy."""
    found = []
    if one.task != other.task:
        found.append(
            Problem("", f"one run is about {one.task}, the other about {other.task}", "compare runs of one task")
        )
    if not shared:
        found.append(Problem("", "the two runs measured no metric in common", "run both with the same metrics"))
    if _short(one.baseline) != _short(other.baseline):
        message = f"{_short(one.baseline)} and {_short(other.baseline)}"
        found.append(
            Problem(
                "", f"the two runs had different baselines: {message}", "run the old recipe again with the new baseline"
            )
        )
    for row in shared:
        was = before[row.metric].protocol
        if odd := _odd(row, before[row.metric]):
            message = ", ".join(
                f"{k} {_reported(was.get(k, 'none'))} and {_reported(row.protocol.get(k, 'none'))}" for k in odd
            )
            fix = FIXES.get(odd[0], OTHERWISE) if len(odd) == 1 else OTHERWISE
            found.append(Problem("", f"{row.metric} was measured by different protocols: {message}", fix))
    if not across_machines and (odd := [k for k in MACHINE if one.machine.get(k) != other.machine.get(k)]):
        message = ", ".join(f"{k} {_reported(one.machine.get(k))} and {_reported(other.machine.get(k))}" for k in odd)
        fix = "run both on one machine, or compare ratios to the baseline only with --across-machines"
        found.append(Problem("", f"the two runs were timed on different machines: {message}", fix))
    return found


def _short(side: Side) -> str:
    return f"{side.digest[:12] or 'unknown'} ({side.engine}) called with {dict(sorted(side.call.items()))}"


def _reported(fact: object) -> str:
    """A fact as a reader sees it: a digest by its beginning."""
    text = " ".join(map(str, fact)) if isinstance(fact, (list, tuple)) else str(fact)
    return f"{text[:12]}…" if DIGEST.fullmatch(text) else text


def _candidates(old: Run, new: Run, name: str) -> tuple[Sample, Sample]:
    """Both candidates' samples.

    Raises:
        NotComparable: a run kept none.
    """
    found = []
    for run in (old, new):
        try:
            found.append(samples.read(run.samples, name)[1])
        except (OSError, ValueError) as error:
            place, fix = str(run.samples), "keep the `samples` folder beside result.json"
            raise NotComparable((Problem(place, f"holds no samples of {name}", fix),)) from error
    if found[0].unit_ids != found[1].unit_ids:
        raise NotComparable((Problem("", f"{name} was measured on different items", "run both on the same data"),))
    return found[0], found[1]


def _quality(was: Row, row: Row, found: tuple[Sample, Sample]) -> Row:
    metric = find_metric(row.metric)
    one, other = metric.score(found[0]), metric.score(found[1])
    contrast = metric.contrast(found[1], found[0])
    # A gate that either run had holds: whoever drops one from the recipe has not thereby passed it.
    gate = row.gate or was.gate
    verdict = judge(gate, metric, one, contrast, candidate=other)
    return replace(row, baseline=one, candidate=other, contrast=contrast, verdict=verdict, gate=gate, noise=None)


def _cost(was: Row, row: Row, across_machines: bool, tolerance: str) -> Row:
    metric, gate = find_metric(row.metric), Gate(worse_by=tolerance)
    known = all(math.isfinite(r.contrast.value) and r.contrast.value > 0 for r in (was, row))
    if known:
        contrast = replace(statistics.quotient(row.contrast, was.contrast), note=OF_RATIOS)
    else:
        contrast = replace(NEITHER, note=row.contrast.note or was.contrast.note)
    gated = gate if (row.gate or was.gate) else None
    sides = (was.contrast, row.contrast) if across_machines else (was.candidate, row.candidate)
    unit = "× baseline" if across_machines else row.unit
    verdict = judge(gated, metric, sides[0], contrast, candidate=sides[1])
    drift = None if across_machines or row.noise is None else _drift(was, row)
    return replace(
        row,
        unit=unit,
        baseline=sides[0],
        candidate=sides[1],
        contrast=contrast,
        verdict=verdict,
        noise=drift,
        gate=gated,
    )


def _drift(was: Row, row: Row) -> Estimate:
    """How the same baseline's time changed between the runs: what the machine alone did."""
    one, other = (row.baseline, was.baseline) if row.better == "higher" else (was.baseline, row.baseline)
    return replace(statistics.quotient(one, other), note="")


def _texts(one: Comparison, other: Comparison) -> dict[str, str]:
    """What the runs' reports tell of their items' texts."""
    return {w.unit_id: w.text for w in (*one.worst, *other.worst)}


def _warnings(one: Comparison, other: Comparison, before: Mapping[str, Row]) -> tuple[str, ...]:
    found = []
    libraries = dict(one.machine.get("libraries", {})), dict(other.machine.get("libraries", {}))
    both = libraries[0].keys() & libraries[1].keys()  # which of them a run tells of is another matter
    odd = sorted(name for name in both if libraries[0][name] != libraries[1][name])
    if odd:
        message = ", ".join(f"{name} {libraries[0][name]} → {libraries[1][name]}" for name in odd)
        found.append(f"libraries changed between the runs: {message}")
    if any(run.baseline.engine.startswith(ENDPOINT) for run in (one, other)):
        found.append("the baselines are endpoints: nobody knows here whether both served the same model")
    gone = [name for name, row in before.items() if name not in {r.metric for r in other.rows}]
    if gone:
        gated = [name for name in gone if before[name].gate]
        found.append(
            f"only the old run measured {', '.join(gone)}" + (f", and gated {', '.join(gated)}" if gated else "")
        )
    return tuple(found)
