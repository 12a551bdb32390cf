"""How far each stage got: speed, size and quality of every model between the baseline and the candidate.

All are compared with the baseline on the same first items, so that a stage's own share is what separates it from the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from compress.catalogue import find_metric
from compress.errors import PareError
from compress.events import Emit, track
from compress.planning.controls import speed_metric
from compress.planning.keep_decision import dropped
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec
from compress.tasks import WRITTEN
from evaluation.comparison import Contribution, Step
from evaluation.evidence import Evidence, Timings
from evaluation.observe.collect import CONTINUATIONS, Viewpoint, collect
from evaluation.observe.repeats import measured
from evaluation.observe.timing import time_views
from evaluation.values import Estimate, Sample, shared
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from evaluation.comparison.sides import Request

T = TypeVar("T")
FEWEST_BLOCKS = 5


@dataclass(frozen=True)
class Reached:
    """What is known of one model of the chain: as much as could be measured, and in words what could not."""

    size_bytes: int
    speed: Estimate | None  # against the baseline
    samples: Mapping[str, Sample]  # per quality metric
    notes: tuple[str, ...] = ()


def measure_steps(
    chain: Sequence[tuple[str, Viewpoint]],
    base: Viewpoint,
    sides: tuple[Evidence, Evidence],
    request: Request,
    emit: Emit,
) -> tuple[Step, ...]:
    """The baseline and every stage of the chain. What failed is noted in its step; it ends no run.

    Args:
        chain: the stages by id; the last one left the candidate.
        sides: baseline and candidate as the verdict saw them, which are not looked at again.
    """
    spec, count = request.spec, request.spec.stage_samples
    if not chain or not count:
        return ()
    names = (speed_metric(spec, request.gates), *_quality_metrics(spec, request.gates))
    before = _reached(sides[0].first(count), None, names, spec, [])
    before = replace(before, speed=Estimate(1.0, 1.0, 1.0, spec.timing_blocks) if names[0] else None)
    steps = [Step("", before.size_bytes, note="; ".join(before.notes))]
    baseline, not_kept = before.samples, dropped(request.stages)
    last = next((view for stage, view in reversed(chain) if stage not in not_kept), None)  # which is the candidate
    for stage, view in track(chain, emit, "each stage against the baseline", len(chain)):
        notes: list[str] = []
        if stage in not_kept:
            steps.append(_passed_on(stage, steps[-1], not_kept[stage]))
            continue
        if view is last:
            found, against = sides[1].first(count), sides[0].timings
        else:
            found, against = _observe(stage, base, view, names, request, sides[0].first(count), notes, emit)
        now = _reached(found, against, names, spec, notes)
        steps.append(_step(stage, now, before, baseline, names, spec))
        before = now
    return tuple(steps)


def _quality_metrics(spec: EvalSpec, gates: Mapping[str, Gate]) -> tuple[str, ...]:
    return tuple(name for name in spec.metrics if name in gates and find_metric(name).quality)


def _observe(
    stage: str,
    base: Viewpoint,
    view: Viewpoint,
    names: tuple[str, ...],
    request: Request,
    original: Evidence,
    notes: list[str],
    emit: Emit,
) -> tuple[Evidence, Timings | None]:
    """Evidence of a model in the middle, with its timings, and the baseline's timings of the same blocks."""
    spec, found = request.spec, Evidence(view.artifact)
    few = replace(view, items=view.items[: spec.stage_samples * view.each])
    if not any(WRITTEN & find_metric(name).needs for name in names[1:]):
        few = replace(few, evidence={kind: how for kind, how in few.evidence.items() if kind != CONTINUATIONS})
    if names[1:]:
        side = f"model after {stage}"
        found = tried(lambda: collect(few, request.evidence_dirs, side, emit), "quality", notes) or found
        found = replace(found, original=original)
    if not names[0]:
        return found, None

    def time() -> tuple[Timings, Timings]:
        from compress.opening import open_task

        one, other = (open_task(side.artifact, side.opening) for side in (base, view))
        blocks = max(FEWEST_BLOCKS, spec.timing_blocks // 3)
        timed = time_views(one, other, base, view, spec.model_copy(update={"timing_blocks": blocks}), emit)
        return timed.baseline, timed.candidate

    against, own = tried(time, "speed", notes) or (None, None)
    return replace(found, timings=own), against


def _reached(
    found: Evidence, against: Timings | None, names: tuple[str, ...], spec: EvalSpec, notes: list[str]
) -> Reached:
    samples: dict[str, Sample] = {}
    for name in names[1:] if found.items else ():
        sample = tried(partial(_sample, name, found, spec), find_metric(name).title, notes)
        samples |= {name: sample} if sample is not None else {}
    speed = None
    if against is not None and found.timings is not None:
        one, other = (_sample(names[0], replace(found, timings=timed), spec) for timed in (found.timings, against))
        speed = _contrast(names[0], one, other, spec)
    size = round(1e6 * _sample("size", found, spec).values[0])
    return Reached(size, speed, samples, tuple(notes))


def _step(
    stage: str,
    now: Reached,
    before: Reached,
    baseline: Mapping[str, Sample],
    names: tuple[str, ...],
    spec: EvalSpec,
) -> Step:
    speed = None
    if now.speed is not None:
        gained = statistics.quotient(now.speed, before.speed) if before.speed else None
        speed = Contribution(names[0], find_metric(names[0]).title, now.speed, gained)
    quality = tuple(
        Contribution(
            name,
            find_metric(name).title,
            _contrast(name, now.samples[name], baseline[name], spec),
            _contrast(name, now.samples[name], before.samples[name], spec) if name in before.samples else None,
        )
        for name in names[1:]
        if name in now.samples and name in baseline
    )
    return Step(stage, now.size_bytes, speed, quality, "; ".join(now.notes))


def _passed_on(stage: str, before: Step, why: str) -> Step:
    """The step of a stage that was not kept: the model is the one before it, and is not measured again."""
    speed = before.speed and replace(before.speed, marginal=None)
    quality = tuple(replace(found, marginal=None) for found in before.quality)
    return Step(stage, before.size_bytes, speed, quality, why)


def _sample(name: str, evidence: Evidence, spec: EvalSpec) -> Sample:
    metric = find_metric(name)
    return measured(metric, evidence, metric.params(**spec.metrics.get(name, {})))


def _contrast(name: str, one: Sample, other: Sample, spec: EvalSpec) -> Estimate:
    metric = find_metric(name)
    found: Estimate = metric.contrast(*shared(one, other))
    return found


def tried(work: Callable[[], T], what: str, notes: list[str]) -> T | None:
    """What `work` gives, or None with a note: a model in the middle may fail in any way that its libraries know."""
    try:
        return work()
    except PareError as error:
        notes.append(f"{what} not measured: {error.problems[0].message}")
    except Exception as error:
        notes.append(f"{what} not measured: {type(error).__name__}: {error}")
    return None
