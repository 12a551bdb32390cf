"""A step that says `keep: if_faster`: its stage runs, and what it left is timed here against what it was given, as the evaluation
times its sides. Only if it is faster beyond the noise does it stay; else the step gives on what it was given.

The stage's own result is an entry by itself, under the key that it has without `keep`. The decision's key adds the machine and all that
decides a timed call. The decision is a file that is renamed into place, so a run that is cut off goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import MANIFEST, Artifact, derive, write_manifest
from compress.beside import IF_FASTER, KEEP
from compress.cache import Cache, write_whole
from compress.catalogue import Stage, find_task
from compress.devices import Opening
from compress.errors import Problem
from compress.events import Emit
from compress.facts import machine_fact
from compress.hashing import digest_json

if TYPE_CHECKING:
    from compress.planning import Plan
    from compress.recipe import Recipe, StepSpec
    from evaluation.compare import Request
    from evaluation.scores import Estimate
    from evaluation.timing import Interleaved

FORMAT = 1  # of a decision, and of how it is made
FILE = "decision.json"
KEPT, WHY = "kept", "decision"  # among a step's facts
TRIES = 2  # measurements, where others were at work on the machine during the first
MOST = 32  # models that a chain may leave, one for each outcome of the steps that are kept only if faster
PLANNED = "kept only if it is faster here"


@dataclass(frozen=True)
class Decision:
    """What the timing showed: how many times as fast a call is with the stage's work, between `low` and `high`, and the least that is
    no noise. unsettled: in words, why the times may be those of a neighbour."""

    ratio: float
    low: float
    high: float
    floor: float
    blocks: int
    unsettled: str = ""

    @property
    def kept(self) -> bool:
        return self.low > self.floor

    @property
    def why(self) -> str:
        """In words, what was decided and why."""
        shown = f"{self.ratio:.3g}× as fast [{self.low:.3g}, {self.high:.3g}] with it as without, timed here"
        if self.kept:
            return f"kept: {shown}"
        noise = f", which is not above the noise of {self.floor:.3f}×" if self.high >= 1 / self.floor else ""
        return f"not kept: {shown}{noise}"

    @property
    def facts(self) -> dict[str, Any]:
        times = [round(value, 4) for value in (self.low, self.ratio, self.high)]
        return {KEPT: self.kept, WHY: self.why, "times as fast": times, "noise": round(self.floor, 4)}


def problems(recipe: Recipe, step: StepSpec, stage: Stage, artifact: Artifact, idle: str) -> Iterator[Problem]:
    """Why a step cannot be kept only if it is faster.

    Args:
        idle: why what it leaves cannot run on this machine, or "".
    """
    touched = stage.touches(artifact, step.params)
    parts = {name: artifact.components[name].format for name in touched if name in artifact.components}
    place = recipe.place.get(f"stages.{recipe.stages.index(step)}.{KEEP}", step.place)
    changed = [name for name, format in parts.items() if stage.leaves(format) != format]
    if changed:
        said = f"{stage.name} makes another format of {', '.join(f'`{name}`' for name in changed)}"
        fix = f"remove `{KEEP}`; build.fastest keeps the fastest engine, torch among them"
        yield Problem(place, f"{said}, and {KEEP}: {IF_FASTER} is for stages that keep formats", fix)
    elif idle:
        said = f"{KEEP}: {IF_FASTER} has to run what {stage.name} leaves, and {idle}"
        yield Problem(place, said, f"remove `{KEEP}`, or run the recipe where it can")


def decision_key(made: str, given: str, source: str, original: Artifact, recipe: Recipe, opening: Opening) -> str:
    """The key of a decision: everything that decides the calls that are timed, and the machine.

    Args:
        made, given, source: the keys of the stage's own result, of what it was given, and of the model that the recipe names,
            which is `original`.
    """
    spec, known = recipe.evaluate, find_task(original.task)
    sizes = {name: [size.axis, size.count] for name, size in known.sizes(spec).items()}
    asked = known.asked(spec.baseline, original.settings.call)
    called = [asked, spec.baseline.dtype, spec.timing_batch, spec.timing_blocks, spec.seed, sizes]
    kinds = ("processors", *(("gpu",) if opening.device != "cpu" else ()))
    machine = {kind: machine_fact(kind) for kind in kinds}
    return digest_json([IF_FASTER, FORMAT, made, given, source, called, machine, opening.device])


def too_many(recipe: Recipe, step: StepSpec, models: int) -> list[Problem]:
    """That the steps so far could leave more different models than a plan looks at."""
    if 1 + models <= MOST:
        return []
    place = recipe.place.get(f"stages.{recipe.stages.index(step)}.{KEEP}", step.place)
    said = f"{KEEP}: {IF_FASTER} of so many steps makes more than {MOST} models of a recipe, each to be planned"
    return [Problem(place, said, f"remove `{KEEP}` where the gain is certain")]


def told(cache: Cache, key: str) -> str:
    """What a plan says of the decision: how it fell, where it has."""
    if not cache.has(key):
        return PLANNED
    return str(cache.facts(key).get("notes", {}).get(WHY, PLANNED))


def timed_as(stage: Stage, if_faster: bool) -> str:
    """The name that a step's seconds are remembered by: with the timing it takes longer."""
    return f"{stage.name} {IF_FASTER}" if if_faster else stage.name


def decide(before: Artifact, after: Artifact, plan: Plan, scratch: Path, emit: Emit) -> Decision:
    """Whether what a stage left is faster than what it was given; an interrupted run's decision stands.

    Raises:
        PareError: one of the two does not run.
    """
    file = scratch / FILE
    if not file.is_file():
        write_whole(file, asdict(_measured(before, after, plan, emit)))
    return Decision(**json.loads(file.read_text()))


def pass_on(artifact: Artifact, out: Path, *, link: bool) -> None:
    """Fill `out` with an artifact as it is."""
    made = derive(artifact, out, link=link)
    if (artifact.path / MANIFEST).is_file():
        shutil.copyfile(artifact.path / MANIFEST, out / MANIFEST)
    else:
        write_manifest(made)


def dropped(stages: tuple[Mapping[str, Any], ...]) -> dict[str, str]:
    """Of a run's stages those that were not kept, by id, and why."""
    return {str(row["id"]): str(row["facts"][WHY]) for row in stages if row.get("facts", {}).get(KEPT) is False}


def decisions(stages: tuple[Mapping[str, Any], ...]) -> tuple[str, ...]:
    """A line for each stage of a run that was to be kept only if faster."""
    return tuple(f"{row['id']}: {row['facts'][WHY]}" for row in stages if WHY in row.get("facts", {}))


def _measured(before: Artifact, after: Artifact, plan: Plan, emit: Emit) -> Decision:
    found = _timed(before, after, plan, emit)
    for _ in range(TRIES - 1):
        found = _timed(before, after, plan, emit) if found.unsettled else found
    return decided(found)


def decided(found: Interleaved) -> Decision:
    """What interleaved times decide: faster is what lies wholly above the noise of the first side against itself."""
    from evaluation.statistics import median_ratio

    ratio: Estimate = median_ratio(found.baseline.seconds, found.candidate.seconds)
    noise: Estimate = median_ratio(found.baseline.seconds, found.again.seconds)
    floor = max(1.0, noise.high, 1 / noise.low)
    return Decision(ratio.value, ratio.low, ratio.high, floor, len(found.baseline.seconds), found.unsettled)


def _timed(before: Artifact, after: Artifact, plan: Plan, emit: Emit) -> Interleaved:
    """Both in turns, each called and opened as the evaluation would."""
    from compress.opening import open_task
    from evaluation.compare import beside, viewpoints
    from evaluation.timing import time_views

    request = _request(after, plan)
    base, candidate = viewpoints(request)
    one, two = beside(base, request, before), candidate
    opened = [open_task(view.artifact, view.opening) for view in (one, two)]
    return time_views(opened[0], opened[1], one, two, plan.recipe.evaluate, emit)


def _request(candidate: Artifact, plan: Plan) -> Request:
    from evaluation.compare import Request

    recipe, source = plan.recipe, plan.source.artifact
    opening = plan.opening.of(None)
    return Request(recipe.name, candidate, source, None, recipe.evaluate, {}, "", (), Path(), (), opening=opening)
