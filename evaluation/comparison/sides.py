"""What is compared, and how each side of it is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from compress.catalogue import find_task
from compress.data.items import Data
from compress.machine.devices import AS_STORED, Opening
from compress.planning.calls import baseline_call, call_beside, lineage_since
from compress.quantization.packed_places import in_own_number_type
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec
from evaluation.observe.collect import Viewpoint
from evaluation.observe.repeats import repeated
from evaluation.preflight.image_folders import captions_of_both, is_folder


@dataclass(frozen=True)
class Request:
    """What is compared, on what, and where the results go.

    evidence_dirs: the first is written, the rest only read.
    chain: the stages that lead to the candidate, by id, with what each left; the last one left the candidate.
    left: what every stage left, by id, those of other branches too.
    opening: on which device both sides are opened; their number types are their own.
    kept: where the candidate was copied out of the cache. warnings: of what went before, for the report.
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
    opening: Opening = AS_STORED
    kept: Path | None = None
    warnings: tuple[str, ...] = ()
    left: Mapping[str, Artifact] = field(default_factory=dict)


def viewpoints(request: Request) -> tuple[Viewpoint, Viewpoint]:
    """Both sides see the same items and noise. The baseline is called as the recipe says, else as its own artifact does."""
    data, own = _looked_at(request)
    base = _viewpoint(request, request.baseline, baseline_call(request.baseline, request.spec.baseline), data)
    base = replace(base, opening=request.opening.of(request.spec.baseline.dtype))
    return base, beside(base, replace(request, data=own), request.candidate)


def _looked_at(request: Request) -> tuple[Data | None, Data | None]:
    """The data that each side is looked at on: the request's, or of two folders of images what each is of."""
    if request.data or not all(map(is_folder, (request.baseline, request.candidate))):
        return request.data, request.data
    return captions_of_both(request.baseline.path, request.candidate.path)


def beside(base: Viewpoint, request: Request, artifact: Artifact) -> Viewpoint:
    """How an artifact is looked at when it stands beside the baseline."""
    call = call_beside(artifact, lineage_since(artifact, base.artifact), base.artifact, base.call)
    alike = all(c.format == "torch" for c in artifact.components.values()) and not in_own_number_type(artifact)
    view = _viewpoint(request, artifact, call, request.data)
    return replace(view, opening=base.opening if alike else base.opening.of(None))


def _viewpoint(request: Request, artifact: Artifact, call: Mapping[str, Any], data: Data | None) -> Viewpoint:
    spec, task, left_out = request.spec, find_task(artifact.task), data.left_out if data else ""
    items, digest = (data.first(spec.samples), data.digest) if data else ((), "")
    evidence, each = task.evidence(spec), task.repeats(spec)
    shown = repeated(items, each)
    return Viewpoint(artifact, request.opening, call, shown, digest, spec.seed, spec.batch, evidence, left_out, each)
