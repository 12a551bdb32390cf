"""A control measured: held to the gates against the baseline as the candidate is, and the candidate against it.

That a candidate is faster than the model it was made of says little where something plain would have been as fast and as good. A
control is observed on all items of the verdict, and timed in the same blocks as baseline and candidate, in random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from compress.catalogue import find_metric
from compress.events import Emit, Event
from compress.params import Params
from compress.planning.controls import held_to
from compress.recipe.gates import Gate
from compress.tasks import WRITTEN
from evaluation.comparison.control_rows import Beside
from evaluation.comparison.rows import row_of
from evaluation.comparison.waterfall import tried
from evaluation.evidence import Evidence
from evaluation.metrics import Metric
from evaluation.observe import cold_starts
from evaluation.observe.collect import CONTINUATIONS, Viewpoint, collect
from evaluation.observe.repeats import measured
from evaluation.observe.timing import Interleaved, time_views
from evaluation.values import Estimate, shared
from evaluation.verdict.gates import judge

if TYPE_CHECKING:
    from evaluation.comparison.sides import Request

T = TypeVar("T")
Kind = Literal["speed", "starts", "quality", "files"]
Views = tuple[Viewpoint, Viewpoint, Viewpoint]  # baseline, candidate, control


@dataclass(frozen=True)
class _Seen:
    """Evidence of all three. `lost` says of which kinds there is none, and why."""

    baseline: Evidence
    candidate: Evidence
    control: Evidence
    timed: Interleaved | None
    lost: Mapping[Kind, str]


def measure_control(
    name: str, views: Views, sides: tuple[Evidence, Evidence], request: Request, emit: Emit
) -> tuple[Beside, ...]:
    """What a control is by every gated metric and a speed. What failed is noted in its row and warned of; it ends no run.

    Args:
        sides: baseline and candidate as the verdict saw them; what comes out of them is not looked at again.
    """
    metrics = [find_metric(one) for one in held_to(request.spec, request.gates)]
    seen = _observe(name, views, sides, metrics, request, emit)
    for why in seen.lost.values():
        emit(Event("warning", f"control {name}", why))
    return tuple(_beside(metric, seen, request) for metric in metrics)


def _kind(metric: Metric[Params]) -> Kind:
    if metric.timed:
        return "speed"
    if "starts" in metric.needs:
        return "starts"
    return "quality" if metric.quality else "files"


def _observe(
    name: str,
    views: Views,
    sides: tuple[Evidence, Evidence],
    metrics: list[Metric[Params]],
    request: Request,
    emit: Emit,
) -> _Seen:
    base, candidate = sides
    kinds, lost = {_kind(metric) for metric in metrics}, dict[Kind, str]()

    def known(kind: Kind, look: Callable[[], T]) -> T | None:
        notes: list[str] = []
        found = tried(look, kind, notes) if kind in kinds else None
        if notes:
            lost[kind] = notes[0]
        return found

    lean, side = _lean(views[2], metrics), f"control {name}"
    bare = collect(replace(lean, items=()), request.evidence_dirs, side, emit)
    own = known("quality", lambda: collect(lean, request.evidence_dirs, side, emit)) or bare
    own = replace(own, original=base)
    if started := known("starts", lambda: cold_starts.start_both(views, request.spec.starts, emit)):
        base, candidate, own = (replace(e, starts=s) for e, s in zip((base, candidate, own), started, strict=True))
    if timed := known("speed", lambda: _time(side, views, request, emit)):
        times = timed.baseline, timed.candidate, timed.beside[0]
        base, candidate, own = (replace(e, timings=t) for e, t in zip((base, candidate, own), times, strict=True))
    return _Seen(base, candidate, own, timed, lost)


def _lean(view: Viewpoint, metrics: list[Metric[Params]]) -> Viewpoint:
    """The view, with no texts continued where no metric reads them."""
    if any(WRITTEN & metric.needs for metric in metrics):
        return view
    return replace(view, evidence={kind: how for kind, how in view.evidence.items() if kind != CONTINUATIONS})


def _time(side: str, views: Views, request: Request, emit: Emit) -> Interleaved:
    from compress.opening import open_task

    base, candidate, own = (open_task(view.artifact, view.opening) for view in views)
    return time_views(base, candidate, *views[:2], request.spec, emit, {side: (own, views[2])})


def _beside(metric: Metric[Params], seen: _Seen, request: Request) -> Beside:
    gate, notes = request.gates.get(metric.name), [seen.lost.get(_kind(metric), "")]
    params = metric.params(**request.spec.metrics[metric.name])
    found = None if notes[0] else tried(partial(_held, metric, params, gate, seen), metric.title, notes)
    return found or _nothing(metric, gate, notes[-1])


def _held(metric: Metric[Params], params: Params, gate: Gate | None, seen: _Seen) -> Beside:
    base, candidate, own = (measured(metric, e, params) for e in (seen.baseline, seen.candidate, seen.control))
    noise = None
    if metric.timed and seen.timed:
        again = metric.measure(replace(seen.baseline, timings=seen.timed.again), params)
        noise = replace(metric.contrast(again, base), note=seen.timed.unsettled)
    row = row_of(metric, shared(base, own), seen.baseline.protocol, gate, noise)
    over: Estimate = metric.contrast(*shared(candidate, own))
    return Beside(metric.name, row.title, row.candidate, row.contrast, over, row.verdict, noise)


def _nothing(metric: Metric[Params], gate: Gate | None, why: str) -> Beside:
    """A metric that a control could not be measured by: what it does not show it has not passed."""
    none = Estimate(math.nan, math.nan, math.nan, 0, why)
    return Beside(metric.name, metric.title, none, none, none, judge(gate, metric, none, none, candidate=none))
