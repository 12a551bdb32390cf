"""Two sides to a Comparison: collect, time, measure, contrast, judge. The one path of `pare run` and `pare eval`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.data import Data, Item
from compress.errors import StageFailed
from compress.events import Emit, Event, track
from compress.recipe import EvalSpec, Gate
from evaluation import machine, memory
from evaluation.collect import Viewpoint, collect
from evaluation.evidence import Evidence
from evaluation.gates import judge
from evaluation.scores import Comparison, Completion, Estimate, Picture, Row, Sample, Side
from evaluation.timing import Interleaved, time_views
from evaluation.waterfall import measure_steps

PICTURES, COMPLETIONS, WRITTEN = 8, 4, 48


@dataclass(frozen=True)
class Request:
    """What is compared, on what, and where the results go.

    evidence_dirs: the first is written, the rest only read.
    chain: the stages that lead to the candidate, by id, with what each left; the last one left the candidate.
    """

    name: str
    candidate: Artifact
    baseline: Artifact
    data: Data | None
    spec: EvalSpec
    gates: Mapping[str, Gate]
    recipe_text: str
    stages: tuple[Mapping[str, Any], ...]
    workdir: Path
    evidence_dirs: tuple[Path, ...]
    chain: tuple[tuple[str, Artifact], ...] = ()


def compare(request: Request, emit: Emit) -> Comparison:
    """Measure everything the request asks for.

    Raises:
        StageFailed: a side does not run, or shows nothing but constants.
    """
    warnings: list[str] = []
    emit = _noting(emit, warnings)
    base, candidate = viewpoints(request)
    needs = {find_metric(name).needs for name in request.spec.metrics}
    sides = (Evidence(base.artifact), Evidence(candidate.artifact))
    if needs & {"images", "texts"}:
        folders = request.evidence_dirs
        sides = (collect(base, folders, "baseline", emit), collect(candidate, folders, "candidate", emit))
    if "peak_memory" in request.spec.metrics:
        peaks = [_peak(view) for view in track((base, candidate), emit, "peak memory, a fresh process a side", 2)]
        sides = (replace(sides[0], peak_memory_bytes=peaks[0]), replace(sides[1], peak_memory_bytes=peaks[1]))
    timed, completions = (None, ()) if "timings" not in needs else _time(base, candidate, request, emit)
    if timed:
        sides = (replace(sides[0], timings=timed.baseline), replace(sides[1], timings=timed.candidate))
    rows = tuple(_row(name, params, sides, request, timed) for name, params in request.spec.metrics.items())
    chain = [(stage, beside(base, request, artifact)) for stage, artifact in request.chain]
    steps = measure_steps(chain, base, sides, request, emit)
    return Comparison(
        name=request.name,
        task=request.candidate.task,
        baseline=_side("baseline", base),
        candidate=_side("candidate", candidate),
        rows=rows,
        machine=machine.facts(),
        recipe=request.recipe_text,
        stages=request.stages,
        steps=steps,
        pictures=_grid(sides),
        completions=completions,
        warnings=tuple(warnings),
    )


def _noting(emit: Emit, warnings: list[str]) -> Emit:
    """`emit`, with every warning also written down for the report."""

    def noting(event: Event) -> None:
        if event.kind == "warning":
            warnings.append(f"{event.what}: {event.message}")
        emit(event)

    return noting


def viewpoints(request: Request) -> tuple[Viewpoint, Viewpoint]:
    """Both sides see the same items, noise and guidance; steps and precision are their own."""
    asked, base = request.spec.baseline, _viewpoint(request, request.baseline)
    if asked.steps is not None:
        base = replace(base, call={**base.call, "num_inference_steps": asked.steps})
    base = replace(base, dtype=asked.dtype or "")
    return base, beside(base, request, request.candidate)


def beside(base: Viewpoint, request: Request, artifact: Artifact) -> Viewpoint:
    """How an artifact is looked at when it stands beside the baseline."""
    view = _viewpoint(request, artifact)
    steps = {k: v for k, v in base.call.items() if k == "num_inference_steps"}
    torch_only = all(c.format == "torch" for c in artifact.components.values())
    # A candidate that says nothing of steps runs as many as the baseline.
    return replace(view, dtype=base.dtype if torch_only else "", call={**steps, **view.call})


def _viewpoint(request: Request, artifact: Artifact) -> Viewpoint:
    spec, guidance = request.spec, request.spec.baseline.guidance
    items = request.data.first(spec.samples) if request.data else ()
    digest = request.data.digest if request.data else ""
    shared = {} if guidance is None else {"guidance_scale": guidance}
    call = {**artifact.settings.call, **shared}
    return Viewpoint(artifact, "", call, items, digest, spec.seed, spec.batch)


def _peak(view: Viewpoint) -> int:
    return memory.peak_bytes(view.artifact.path, view.dtype, view.call)


def _time(
    base: Viewpoint, candidate: Viewpoint, request: Request, emit: Emit
) -> tuple[Interleaved, tuple[Completion, ...]]:
    from compress.tasks import open_task

    one: Any = open_task(base.artifact, dtype=base.dtype or None)
    other: Any = open_task(candidate.artifact, dtype=candidate.dtype or None)
    timed = time_views(one, other, base, candidate, request.spec, emit)
    return timed, () if base.artifact.task == "text_to_image" else _completions(one, other, base.items)


def _completions(one: Any, other: Any, items: tuple[Item, ...]) -> tuple[Completion, ...]:
    found = []
    for item in items[:COMPLETIONS]:
        prompt = one.encode(item.text)[:24]
        base, candidate = one.generate([prompt], WRITTEN)[0], other.generate([prompt], WRITTEN)[0]
        differing = next((i for i, (a, b) in enumerate(zip(base, candidate, strict=True)) if a != b), -1)
        decode = one.tokenizer.decode
        text = decode(prompt, skip_special_tokens=True)
        found.append(Completion(item.id, text, decode(base), decode(candidate), differing))
    return tuple(found)


def _row(
    name: str, params: Mapping[str, Any], sides: tuple[Evidence, Evidence], request: Request, timed: Interleaved | None
) -> Row:
    metric = find_metric(name)
    values = metric.params(**params)
    base, candidate = (metric.measure(side, values) for side in sides)
    _keep(request.workdir, name, base, candidate)
    if metric.needs in ("images", "texts") and base.protocol != candidate.protocol:
        raise StageFailed(
            f"{name}: the two sides were scored by different protocols, {dict(base.protocol)} and {dict(candidate.protocol)}",
            fix="score both with the same extractor",
        )
    contrast = metric.contrast(candidate, base, values)
    score = metric.score(base, values)
    noise = _noise(metric, sides[0], base, timed, values) if timed and metric.needs == "timings" else None
    extractor = base.protocol.get("features", "")
    return Row(
        metric=name,
        title=f"{metric.title}, {extractor} features" if extractor else metric.title,
        unit=metric.unit,
        better=metric.better,
        compared=metric.compared,
        baseline=score,
        candidate=metric.score(candidate, values),
        contrast=contrast,
        verdict=judge(request.gates.get(name), metric, score, contrast, noise),
        noise=noise,
        protocol={**sides[0].protocol, **base.protocol, "version": metric.version},
    )


def _noise(metric: Any, baseline: Evidence, sample: Sample, timed: Interleaved, params: Any) -> Estimate:
    """The baseline against itself (A/A), as this metric sees it."""
    again: Estimate = metric.contrast(metric.measure(replace(baseline, timings=timed.again), params), sample, params)
    return again


def _keep(workdir: Path, name: str, base: Sample, candidate: Sample) -> None:
    """Samples per unit go beside result.json, so that every number can be computed again."""
    from safetensors.numpy import save_file

    folder = workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"baseline": base.values, "candidate": candidate.values}
    if base.reference is not None:
        tensors["reference"] = base.reference
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / f"{name}.safetensors")


def _side(name: str, view: Viewpoint) -> Side:
    engines = sorted({f"{c.format}" for c in view.artifact.components.values()})
    how = view.dtype + " eager" if engines == ["torch"] else ""
    parts = (
        ", ".join(f"{n}: {c.format}" for n, c in view.artifact.components.items()) if engines != ["torch"] else "torch"
    )
    lineage = tuple({"stage": p.stage, "params": dict(p.params)} for p in view.artifact.lineage)
    return Side(name, view.artifact.digest, f"{parts} {how}".strip(), dict(view.call), lineage)


def _grid(sides: tuple[Evidence, Evidence]) -> tuple[Picture, ...]:
    one, other = sides
    if one.picture is None or other.picture is None:
        return ()
    return tuple(
        Picture(item.id, item.text, one.picture(i), other.picture(i)) for i, item in enumerate(one.items[:PICTURES])
    )
