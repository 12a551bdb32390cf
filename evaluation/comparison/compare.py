"""Two sides to a Comparison: collect, time, measure, contrast, judge. The one path of `pare run` and `pare eval`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compress.artifact import Artifact, read_json
from compress.catalogue import find_metric
from compress.endpoints.served import Served
from compress.engines import SETTINGS
from compress.errors import UserError
from compress.events import FIGURE, RECURS, Emit, Event, track
from compress.model.hook_settings import losses
from compress.pipelines.call_arguments import lost_settings
from compress.pipelines.unheeded import unheeded
from compress.recipe.values import EvalSpec
from compress.sources.units import fewer
from evaluation.comparison import ENDPOINT, IMAGES, Comparison, Row, Side, samples
from evaluation.comparison.advice import advised
from evaluation.comparison.control_rows import Control
from evaluation.comparison.controls import measure_control
from evaluation.comparison.examples import completions, grid, worst
from evaluation.comparison.fitting import fitting
from evaluation.comparison.roofline import bytes_read
from evaluation.comparison.rows import row_of
from evaluation.comparison.sanity import worse_than_guessing
from evaluation.comparison.sides import Request, beside, viewpoints
from evaluation.comparison.waterfall import measure_steps
from evaluation.evidence import Evidence
from evaluation.metrics import Metric, P
from evaluation.observe import cold_starts, hardware
from evaluation.observe.collect import Viewpoint, collect
from evaluation.observe.endpoint_times import time_endpoints
from evaluation.observe.endpoints import alike_scored
from evaluation.observe.repeats import measured
from evaluation.observe.timing import Interleaved, time_views
from evaluation.values import OWN_REFERENCE, Estimate, Sample, shared

if TYPE_CHECKING:
    from compress.opening.models import OpenModel


def compare(request: Request, emit: Emit) -> Comparison:
    """Measure everything the request asks for.

    Raises:
        StageFailed: a side does not run, or shows nothing but constants.
    """
    warnings = list(request.warnings)
    emit = noting(emit, warnings)
    request = _all_fitting(request, emit)
    views = viewpoints(request)
    _check_items(views)
    for message in filter(None, (views[0].left_out, _fewer(request))):
        if not any(reported.endswith(f": {message}") for reported in warnings):  # by the plan
            emit(Event("warning", "data", message))
    for side, view in zip(("baseline", "candidate"), views, strict=True):
        if lost := lost_settings(view.artifact, view.call):
            emit(Event("warning", side, lost))
    sides, timed = _observe(views, request, emit)
    for message in dict.fromkeys(message for side in sides for message in side.message):
        emit(Event("warning", "captions" if sides[0].image else "data", message))
    if unfit := worse_than_guessing(sides[0]):
        emit(Event("warning", "baseline", unfit))
    rows, scored = _rows(sides, request, timed, emit)
    if message := _without_real(rows):
        emit(Event("warning", "reference", message))
    chain = [(stage, beside(views[0], request, artifact)) for stage, artifact in request.chain]
    steps = measure_steps(chain, views[0], sides, request, emit)
    controls = _controls(views, sides, request, emit)
    return Comparison(
        name=request.name,
        task=request.candidate.task,
        baseline=_side("baseline", views[0], timed.inside[0] if timed else ""),
        candidate=_side("candidate", views[1], timed.inside[1] if timed else ""),
        rows=rows,
        machine=hardware.facts(request.opening.device) | _beside(timed) | _served(views),
        recipe=request.recipe_text,
        stages=request.stages,
        steps=steps,
        images=grid(sides, rows, scored),
        completions=completions(sides),
        worst=worst(sides, rows, scored),
        controls=controls,
        warnings=tuple(warnings),
        holds=max(0, request.data.count) if request.data else len(views[0].items) // views[0].each,
    )


def _all_fitting(request: Request, emit: Emit) -> Request:
    """The request with all that stands beside its candidate as `fitting` has it."""
    opening = request.opening.of(request.spec.baseline.dtype)

    def fit(side: str, artifact: Artifact) -> Artifact:
        return fitting(side, artifact, request.candidate, opening, emit)

    chain = tuple((stage, fit(stage, artifact)) for stage, artifact in request.chain)
    left = {name: fit(f"control {name}", artifact) for name, artifact in request.left.items()}
    return replace(request, baseline=fit("baseline", request.baseline), chain=chain, left=left)


def _check_items(views: tuple[Viewpoint, Viewpoint]) -> None:
    """Everything is paired item by item.

    Raises:
        UserError: the two sides are folders of differently called images.
    """
    one, other = ([item.id for item in view.items] for view in views)
    if one != other:
        odd = sorted(set(one) ^ set(other))
        raise UserError(
            f"the two sides hold {len(one)} and {len(other)} images, and only one of them {odd[0]!r}",
            place=str(views[1].artifact.path),
            fix="give both the same file names; a folder A against a set B of others is `pare eval A A --reference B`",
        )


def _fewer(request: Request) -> str:
    """That the data hold fewer items than somebody asked for, in words, or ""."""
    usual = EvalSpec.model_fields["samples"].default
    return fewer(request.data, request.spec.samples, usual) if request.data else ""


def _without_real(rows: Sequence[Row]) -> str:
    """Which scores are distances from the baseline's own images, in words; "" where none is."""
    names = [row.metric for row in rows if row.protocol.get("reference") == OWN_REFERENCE]
    if not names:
        return ""
    verb = "is a distance" if len(names) == 1 else "are distances"
    return (
        f"no real images are given, so {', '.join(names)} {verb} from the baseline's own: where those are not real, name some as "
        "`reference`"
    )


def noting(emit: Emit, warnings: list[str]) -> Emit:
    """`emit`, with every warning also written down for the report. Of those that say again what was wrong at another measurement (`RECURS`)
    the first is passed on, while it can still be heeded, and the worst is written down in its place, or the last of those that are as bad."""
    worst = dict[str, tuple[int, float]]()  # by what recurs: where it is written down, and how bad it was

    def noting(event: Event) -> None:
        if event.kind == "warning" and RECURS in event.facts:
            kind, figure = event.facts[RECURS], event.facts[FIGURE]
            place, before = worst.get(kind, (len(warnings), -1.0))
            if figure >= before:
                warnings[place : place + 1] = [f"{event.what}: {event.message}"]
                worst[kind] = place, figure
            if before >= 0:
                return
        elif event.kind == "warning":
            warnings.append(f"{event.what}: {event.message}")
        emit(event)

    return noting


def _observe(
    views: tuple[Viewpoint, Viewpoint], request: Request, emit: Emit
) -> tuple[tuple[Evidence, Evidence], Interleaved | None]:
    """Evidence of both sides, and their timings where a metric needs any."""
    metrics = [find_metric(name) for name in request.spec.metrics]
    looked = any(m.quality for m in metrics)
    # Where nothing judges what comes out, nobody looks at it.
    one, other = (
        collect(view if looked else replace(view, items=()), request.evidence_dirs, side, emit)
        for view, side in zip(views, ("baseline", "candidate"), strict=True)
    )
    if all(isinstance(view.artifact, Served) for view in views):
        one, other = alike_scored((one, other), emit)
    if any("starts" in m.needs for m in metrics):
        started = cold_starts.start_both(views, request.spec.starts, emit)
        one, other = replace(one, starts=started[0]), replace(other, starts=started[1])
    timed = _time(views, request, emit) if any(m.timed for m in metrics) else None
    if timed:
        one, other = replace(one, timings=timed.baseline), replace(other, timings=timed.candidate)
    return (one, replace(other, original=one)), timed


def _time(views: tuple[Viewpoint, Viewpoint], request: Request, emit: Emit) -> Interleaved:
    if any(isinstance(view.artifact, Served) for view in views):
        return time_endpoints(views, request.spec, emit)
    from compress.opening import open_task

    one, other = (open_task(view.artifact, view.opening) for view in views)
    timed = time_views(one, other, *views, request.spec, emit)
    return replace(timed, inside=(_inside("baseline", one, emit), _inside("candidate", other, emit)))


def _inside(side: str, opened: OpenModel, emit: Emit) -> str:
    """What a timed side's calls really were, and what computed them; calls that fell back are a warning."""
    from compress.opening.computed_by import computed_by

    layers = computed_by(opened)
    if not opened.artifact.settings.hook:
        return layers
    from compress.opening.hooks import fell_back, ran_inside

    if why := fell_back(opened):
        emit(Event("warning", side, why))
    return "; ".join(filter(None, (ran_inside(opened), layers)))


def _controls(
    views: tuple[Viewpoint, Viewpoint], sides: tuple[Evidence, Evidence], request: Request, emit: Emit
) -> tuple[Control, ...]:
    """The controls, each beside baseline and candidate."""
    found = []
    for name in request.spec.controls:
        view = beside(views[0], request, request.left[name])
        if lost := lost_settings(view.artifact, view.call):
            emit(Event("warning", f"control {name}", lost))
        rows = measure_control(name, (*views, view), sides, request, emit)
        found.append(Control(name, _side(name, view), rows))
    return tuple(found)


def _rows(
    sides: tuple[Evidence, Evidence], request: Request, timed: Interleaved | None, emit: Emit
) -> tuple[tuple[Row, ...], dict[str, tuple[Sample, Sample]]]:
    """The rows, and the samples of both sides that each rests on."""
    rows, kept, reported = [], {}, set[str]()
    held = request.data.count if request.data else len(sides[0].unit_ids)
    for name in track(tuple(request.spec.metrics), emit, "scoring", len(request.spec.metrics)):
        metric = find_metric(name)
        values = metric.params(**request.spec.metrics[name])
        found = shared(measured(metric, sides[0], values), measured(metric, sides[1], values))
        for left_out in {s.left_out for s in found if s.left_out} - reported:
            emit(Event("warning", name, left_out))
            reported.add(left_out)
        noise = _noise(metric, sides[0], found[0], timed, values) if timed and metric.timed else None
        row = row_of(metric, found, sides[0].protocol, request.gates.get(name), noise)
        rows.append(advised(row, metric, request, len(sides[0].unit_ids), held))
        kept[name] = found
    shutil.rmtree(request.workdir / "samples", ignore_errors=True)  # of another run, of which nothing may be left
    for name, pair in kept.items():
        samples.keep(request.workdir / "samples", name, *pair)
    return tuple(rows), kept


def _beside(timed: Interleaved | None) -> dict[str, object]:
    """What else went on while the sides were timed, as far as it is known: the share that others took, and the GPU's clocks."""
    if timed is None:
        return {}
    return {**timed.card, **({} if timed.others is None else {"others_share": round(timed.others, 3)})}


def _served(views: tuple[Viewpoint, Viewpoint]) -> dict[str, object]:
    """Of sides that servers have, where that is and what those call their models."""
    sides = zip(("baseline", "candidate"), views, strict=True)
    found = {name: view.artifact.facts for name, view in sides if isinstance(view.artifact, Served)}
    return {"endpoints": found} if found else {}


def _noise(metric: Metric[P], baseline: Evidence, sample: Sample, timed: Interleaved, params: P) -> Estimate:
    """The baseline against itself (A/A), as this metric sees it."""
    again: Estimate = metric.contrast(metric.measure(replace(baseline, timings=timed.again), params), sample)
    return replace(again, note=timed.unsettled)


def _side(name: str, view: Viewpoint, inside: str | None = None) -> Side:
    if isinstance(view.artifact, Served):
        return Side(name, "", f"{ENDPOINT}, {view.artifact.address}", dict(view.call))
    if not view.artifact.components:
        return Side(name, view.artifact.digest, IMAGES)
    engines = sorted({f"{c.format}" for c in view.artifact.components.values()})
    how = " ".join(filter(None, (view.opening.dtype, "eager"))) if engines == ["torch"] else ""
    parts = (
        ", ".join(f"{n}: {_engine(view.artifact, n)}" for n in view.artifact.components)
        if engines != ["torch"]
        else "torch"
    )
    lineage = tuple(
        {"stage": p.stage, "params": dict(p.params)} | ({"inputs": dict(p.inputs)} if p.inputs else {})
        for p in view.artifact.lineage
    )
    return Side(
        name,
        view.artifact.digest,
        f"{parts} {how}".strip()
        + _packed(view)
        + (", called the lean way" if view.artifact.settings.lean else "")
        + _hooks(view, inside),
        dict(view.call),
        lineage,
        bytes_read(view.artifact, view.opening.dtype or ""),
        unheeded(view.artifact, view.call),
    )


def _engine(artifact: Artifact, name: str) -> str:
    """By what a component runs, and of an engine that says so in what it computes."""
    part, settings = artifact.components[name], artifact.folder(name) / SETTINGS
    if part.format == "torch" or not settings.is_file():
        return part.format
    built = str(read_json(settings).get("precision", ""))  # which a quantizer behind the build leaves as it was
    return f"{part.format} {part.quantization.method if part.quantization else built}".strip()


def _packed(view: Viewpoint) -> str:
    """How the weights of torch components are packed, which their libraries unpack or compute with."""
    parts = view.artifact.components.items()
    found = {name: part.quantization for name, part in parts if part.format == "torch" and part.quantization}
    return "".join(f", `{name}` by {how.method} in {how.bits} bits" for name, how in found.items())


def _hooks(view: Viewpoint, inside: str | None) -> str:
    """What is hooked into a side's modules, and what ran: as was counted while they were timed, or as it is meant; None: nobody counted."""
    lossy = losses(view.artifact)
    names = dict.fromkeys(one.name for one in view.artifact.settings.hook)
    meant = ", ".join(f"{name}, lossy" if name in lossy else name for name in names)
    counted = "" if inside is None or not (inside or meant) else f" ({inside or 'not timed'})"
    return f", {meant}{counted}" if meant else counted
