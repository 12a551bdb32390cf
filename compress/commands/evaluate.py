"""`pare eval`: two sides compared as asked for, no recipe needed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compress.catalogue import find_task
from compress.commands.metric_checks import filled_in, too_few_images
from compress.commands.results import EVENTS
from compress.commands.side_checks import side_cautions, side_problems
from compress.commands.sides import open_sides, own_captions
from compress.commands.wanted import Wanted
from compress.endpoints.address import is_address
from compress.errors import ManyProblems, PareError, StageFailed
from compress.events import Emit, Event, silent
from compress.execution.blame import cause, remedy
from compress.machine.devices import Opening, settled
from compress.model.finite_checks import refuse_nonfinite
from compress.planning.cautions import data_cautions
from compress.store.cache import Cache

if TYPE_CHECKING:
    from evaluation.comparison import Comparison
    from evaluation.comparison.sides import Request
    from evaluation.preflight.image_checks import Images


def prepare(candidate: str, baseline: str, wanted: Wanted, store: Cache, out: Path, emit: Emit = silent) -> Request:
    """What it takes to compare two sides, each a model folder, an artifact, `zoo://…`, a folder of images or an endpoint. Runs nothing;
    endpoints are asked for a few small answers.

    Raises:
        UserError: a side is none of these, they do different tasks, a metric or a gate does not fit, there is no such device
            here, a side cannot be opened there, images do not read, weights are no numbers, or an endpoint does not answer as a metric
            needs it to; or its answers would take the place of what it is compared with.
    """
    from evaluation.comparison.sides import Request
    from evaluation.preflight.endpoint_checks import cautions, looked_at, overwritten
    from evaluation.preflight.image_checks import refuse_damaged

    opening = Opening(device=settled(wanted.device), trust_remote_code=wanted.trust_remote_code)
    if any(map(is_address, (candidate, baseline))):
        settings = [value for given in wanted.spread.values() for value in given.values()]
        if lost := tuple(overwritten((candidate, baseline, wanted.data, *settings), out)):
            raise ManyProblems(lost)
    sides, data = open_sides(candidate, baseline, wanted, store, emit)
    metrics = filled_in(wanted, sides, data)
    data = data or own_captions(sides)
    few = too_few_images(metrics, data, wanted.spec, find_task(sides[0].task).repeats(wanted.spec))
    if shut := (*few, *side_problems(sides, wanted, opening)):
        raise ManyProblems(shut)
    for shown in sides:
        if shown.components:
            refuse_nonfinite(shown, shown.digest, store.root / "digests")
    sides = looked_at(sides, metrics, data, wanted.spec, out)
    spec = wanted.spec.model_copy(update={"metrics": metrics})
    reported = [
        *cautions(sides, metrics, data),
        *side_cautions(sides, wanted, data),
        *(("data", message) for message in (data_cautions(data, spec, wanted.gates) if data else ())),
    ]
    for what, message in reported:
        emit(Event("warning", what, message))
    request = Request(
        name=out.name,
        candidate=sides[0],
        baseline=sides[1],
        data=data,
        spec=spec,
        gates=wanted.gates,
        recipe_text="",
        stages=(),
        workdir=out,
        evidence_dirs=(store.root / "evidence",),
        opening=opening,
        warnings=tuple(f"{what}: {message}" for what, message in reported),
    )
    refuse_damaged(_images(request), store.root / "digests", emit)
    return request


def _images(request: Request) -> Iterator[Images]:
    """Those that will be read."""
    from evaluation.comparison.sides import viewpoints
    from evaluation.preflight.image_checks import generated, to_be_read
    from evaluation.preflight.image_folders import is_folder

    for side, view in zip(("baseline", "candidate"), viewpoints(request), strict=True):
        if is_folder(view.artifact):
            yield generated(view.artifact.path, view.items, side)
    yield from to_be_read(request.spec.metrics, request.data, request.spec.samples)


def measure(request: Request, emit: Emit) -> Comparison:
    """Compare as the request says; writes the reports into its folder."""
    from evaluation.comparison.compare import compare
    from evaluation.comparison.usage import hand_over
    from evaluation.report import write

    try:
        found = compare(request, emit)
    except PareError:
        raise
    except Exception as error:  # whatever a model, its data or a library makes of being measured
        emit(Event("failed", "evaluation", facts={"traceback": traceback.format_exc()}))
        message = f"the evaluation failed: {cause(error)}"
        raise StageFailed(message, place=str(request.workdir / EVENTS), fix=remedy(error)) from error
    comparison = replace(found, directory=str(request.workdir), handed=hand_over(request, found.candidate.call))
    write(comparison, request.workdir)
    return comparison
