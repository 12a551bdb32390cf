"""A step that says `keep: if_faster`: its stage runs, and what it left is timed here against what it was given, as the evaluation
times its sides. Only if it is faster beyond the noise does it stay; else the step gives on what it was given.

The stage's own result is an entry by itself, under the key that it has without `keep`. The decision's key adds the machine and all that
decides a timed call. The decision is a file that is renamed into place, so a run that is cut off goes on from there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import MANIFEST, Artifact, derive, write_manifest
from compress.events import Emit, Event
from compress.planning.keep_decision import KEPT, WHY
from compress.store.cache import write_whole

if TYPE_CHECKING:
    from compress.planning.plan import Plan
    from evaluation.comparison.sides import Request
    from evaluation.observe.timing import Interleaved
    from evaluation.values import Estimate

FILE = "decision.json"
TRIES = 2  # measurements, where others were at work on the machine during the first


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


def _measured(before: Artifact, after: Artifact, plan: Plan, emit: Emit) -> Decision:
    found = _timed(before, after, plan, emit)
    for _ in range(TRIES - 1):
        found = _timed(before, after, plan, emit) if found.unsettled else found
    return decided(found)


def decided(found: Interleaved) -> Decision:
    """What interleaved times decide: faster is what lies wholly above the noise of the first side against itself."""
    from evaluation.verdict.statistics import median_ratio

    ratio: Estimate = median_ratio(found.baseline.seconds, found.candidate.seconds)
    noise: Estimate = median_ratio(found.baseline.seconds, found.again.seconds)
    floor = max(1.0, noise.high, 1 / noise.low)
    return Decision(ratio.value, ratio.low, ratio.high, floor, len(found.baseline.seconds), found.unsettled)


def _timed(before: Artifact, after: Artifact, plan: Plan, emit: Emit) -> Interleaved:
    """Both in turns, each called and opened as the evaluation would. What is wrong with the times is reported with the decision, if
    it rests on them, and not here."""
    from compress.opening import open_task
    from evaluation.comparison.sides import beside, viewpoints
    from evaluation.observe.timing import time_views

    request = _request(after, plan)
    base, candidate = viewpoints(request)
    one, two = beside(base, request, before), candidate
    opened = [open_task(view.artifact, view.opening) for view in (one, two)]

    def without_warnings(event: Event) -> None:
        if event.kind != "warning":
            emit(event)

    return time_views(opened[0], opened[1], one, two, plan.recipe.evaluate, without_warnings)


def _request(candidate: Artifact, plan: Plan) -> Request:
    from evaluation.comparison.sides import Request

    recipe, source = plan.recipe, plan.source.artifact
    opening = plan.opening.of(None)
    return Request(recipe.name, candidate, source, None, recipe.evaluate, {}, "", (), Path(), (), opening=opening)
