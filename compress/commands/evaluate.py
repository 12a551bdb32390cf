"""Verbs that run no stage: `eval` compares two sides, `compare` two runs, `report` tabulates many, `reference` keeps statistics."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import find_metric, find_task, metric_names, task_names
from compress.data.items import Data
from compress.endpoints.address import TIMEOUT, is_address
from compress.endpoints.finding import find_endpoint
from compress.endpoints.served import Served
from compress.errors import DataError, ManyProblems, ModelError, PareError, Problem, StageFailed, UserError
from compress.events import Emit, Event, silent
from compress.execution.blame import cause, remedy
from compress.files.user_paths import expanded
from compress.machine.devices import CPU, Opening, settled
from compress.model.finite_checks import refuse_nonfinite
from compress.params import faults
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.image_inputs import strength_of
from compress.pipelines.index import class_of
from compress.pipelines.index_checks import sampled_otherwise
from compress.planning.calls import Call, baseline_call, call_beside, lineage_since
from compress.planning.cautions import data_cautions
from compress.planning.chat_checks import chat_problems
from compress.planning.evaluation_checks import beyond_training, kind_problems, misfit, too_long
from compress.planning.step_checks import source_problems
from compress.recipe.gates import Gate
from compress.recipe.shared_parameters import spread, takers, unused
from compress.recipe.validate import check_values
from compress.recipe.values import EvalSpec
from compress.sources.data import as_captions
from compress.sources.units import distinct, open_units
from compress.store.cache import Cache

if TYPE_CHECKING:
    from evaluation.comparison.sides import Request
    from evaluation.preflight.image_checks import Images
    from evaluation.values import Comparison

RESULT, EVENTS = "result.json", "events.jsonl"
GENERATING = next(name for name in task_names() if find_task(name).folders)  # of two folders of images


@dataclass(frozen=True)
class Wanted:
    """What `eval` measures: metrics with their parameters, gates, the data's name ("" for none), how much of it, where, and
    whether the models' own Python code may run, and how many seconds an endpoint may be silent."""

    metrics: Mapping[str, Mapping[str, Any]]
    gates: Mapping[str, Gate] = field(default_factory=dict)
    data: str = ""
    spec: EvalSpec = field(default_factory=EvalSpec)
    device: str = CPU
    trust_remote_code: bool = False
    timeout: float = TIMEOUT


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
        settings = [value for given in _spread(wanted).values() for value in given.values()]
        if lost := tuple(overwritten((candidate, baseline, wanted.data, *settings), out)):
            raise ManyProblems(lost)
    sides, data = _opened(candidate, baseline, wanted, store, emit)
    metrics = _check(wanted, sides, data)
    data = data or _own_captions(sides)
    few = _few(metrics, data, wanted.spec, find_task(sides[0].task).repeats(wanted.spec))
    if shut := (*few, *_shut(sides, wanted.spec, opening), *_long(sides, wanted)):
        raise ManyProblems(shut)
    for shown in sides:
        if shown.components:
            refuse_nonfinite(shown, shown.digest, store.root / "digests")
    sides = looked_at(sides, metrics, data, wanted.spec, out)
    reported = [
        *cautions(sides, metrics, data),
        *_far(sides, wanted),
        *_of_other_strengths(sides, wanted.spec),
        *([] if data else _apart(sides).items()),
    ]
    reported += [
        (str(side.path), message) for side in sides if side.components and (message := sampled_otherwise(side))
    ]
    spec = wanted.spec.model_copy(update={"metrics": metrics})
    reported += [("data", message) for message in (data_cautions(data, spec, wanted.gates) if data else ())]
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


def _long(sides: Sequence[Artifact], wanted: Wanted) -> Iterator[Problem]:
    """Sides whose positions do not reach as far as they are to write."""
    for side in sides:
        if side.components and (why := too_long(side, wanted.spec, wanted.metrics)):
            yield Problem(str(side.path), why, "ask for fewer: spec=EvalSpec(prompt_tokens=…, new_tokens=…)")


def _far(sides: Sequence[Artifact], wanted: Wanted) -> Iterator[tuple[str, str]]:
    """Sides that are to write further than they were trained to, and that in words."""
    for side in sides:
        if side.components and (message := beyond_training(side, wanted.spec, wanted.metrics)):
            yield str(side.path), message


def _of_other_strengths(sides: Sequence[Artifact], spec: EvalSpec) -> Iterator[tuple[str, str]]:
    """That what two pipelines are given is changed by one more than by the other, in words."""
    if not all(side.components for side in sides):
        return
    calls = _calls(sides, spec)
    one, other = (strength_of(side, call, call_arguments(class_of(side.path)) or {}) for side, call in calls)
    if one != other:
        fix = "a recipe with evaluate.baseline.strength compares them at one"
        yield str(sides[0].path), f"it is called with strength {one:g}, and the baseline with {other:g}: {fix}"


def _calls(sides: Sequence[Artifact], spec: EvalSpec) -> tuple[tuple[Artifact, Call], ...]:
    """The two sides, each with the arguments that it will be called with."""
    candidate, baseline = sides
    base = baseline_call(baseline, spec.baseline)
    return (candidate, call_beside(candidate, lineage_since(candidate, baseline), baseline, base)), (baseline, base)


def _apart(sides: Sequence[Artifact]) -> dict[str, str]:
    """What is not alike in two folders of images."""
    from evaluation.preflight.image_folders import ill_paired, is_folder

    message = "" if not all(map(is_folder, sides)) else ill_paired(*(side.path for side in reversed(sides)))
    return {str(sides[0].path): message} if message else {}


def _few(metrics: Mapping[str, Mapping[str, Any]], data: Data | None, spec: EvalSpec, each: int) -> Iterator[Problem]:
    """Which metrics will have too few images."""
    from evaluation.preflight.image_counts import too_few

    for name, values in metrics.items():
        if few := too_few(find_metric(name), values, data, spec.samples, each):
            yield Problem("metrics", few.message, few.fix)


def _shut(sides: Sequence[Artifact], spec: EvalSpec, opening: Opening) -> tuple[Problem, ...]:
    """What keeps the sides from being opened, or called as they will be."""
    found = [
        p
        for side, call in _calls(sides, spec)
        if side.components
        for p in source_problems(side, opening, str(side.path), call=call)
    ]
    return tuple(dict.fromkeys(found))


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


def _opened(
    candidate: str, baseline: str, wanted: Wanted, store: Cache, emit: Emit
) -> tuple[list[Artifact], Data | None]:
    """Both sides, and the data.

    Raises:
        UserError: all that is wrong with them, together with what metrics name on disk.
    """
    errors: list[UserError] = []
    sides: list[Artifact] = []
    data = None
    try:
        sides = _sides(candidate, baseline, wanted, store, emit)
    except UserError as error:
        errors.append(error)
    try:
        kind = find_task(sides[0].task).data if sides else None
        data = open_units(wanted.data, Path(), kind, store.root / "digests") if wanted.data else None
        if data and data.kind == "texts" and kind == "captioned_images" and any(isinstance(s, Served) for s in sides):
            data = as_captions(data)
    except UserError as error:
        errors.append(error)
    misplaced = tuple(_misplaced(wanted)) if errors else ()
    if len(errors) == 1 and not misplaced:
        raise errors[0]
    if errors:
        raise ManyProblems((*(problem for error in errors for problem in error.problems), *misplaced))
    return sides, data


def _misplaced(wanted: Wanted) -> Iterator[Problem]:
    """What is wrong with what metrics name on disk."""
    for name, given in _spread(wanted).items():
        for setting, wrong in faults(find_metric(name).params, given).items():
            yield Problem("metrics", f"{name}.{setting}: {wrong.message}", wrong.fix)


def _spread(wanted: Wanted) -> dict[str, dict[str, Any]]:
    """The metrics that there are, with what they leave open; that there is none of a name is reported elsewhere."""
    return spread({name: given for name, given in wanted.metrics.items() if name in metric_names()}, wanted.spec)


def _sides(candidate: str, baseline: str, wanted: Wanted, store: Cache, emit: Emit) -> list[Artifact]:
    """Both sides. A folder of images does what the model beside it does, if that generates; an endpoint what is asked of it."""
    from evaluation.preflight.image_folders import describe_generated, is_generated

    both = {"candidate": candidate, "baseline": baseline}
    folders = {named: expanded(named) for named in both.values() if not is_address(named)}
    models = {named: _model(named, store, emit) for named, folder in folders.items() if not is_generated(folder)}
    beside = [side.task for side in models.values() if not find_task(side.task).fits(("images",))]
    task = next(iter(beside), GENERATING)
    found = {
        side: models.get(named) or describe_generated(folders[named], task)
        for side, named in both.items()
        if named in folders
    }
    served = {side: find_endpoint(named, side, wanted.timeout) for side, named in both.items() if side not in found}
    if served:
        other = next(iter(found.values()), None)
        shared = other.task if other else _asked_of(next(iter(served.values())), wanted)
        found |= {side: replace(one, task=shared) for side, one in served.items()}
    return [found[side] for side in both]


def _asked_of(served: Served, wanted: Wanted) -> str:
    """The task of two endpoints."""
    from evaluation.preflight.endpoint_checks import task_served

    metrics = [name for name in (*wanted.metrics, *wanted.gates) if name in metric_names()]
    data = None
    with suppress(DataError):  # which is reported where they are opened for good
        data = open_units(wanted.data, Path()) if wanted.data else None
    return task_served(metrics, data, served)


def _model(named: str, store: Cache, emit: Emit) -> Artifact:
    from compress.making.ready import ready
    from compress.sources.models import find_source

    try:
        found = find_source(named, Path(), store.root / "digests")
    except ModelError as error:
        raise _other_images(expanded(named)) or error from None
    return replace(ready(found, store, emit).artifact, digest=found.key)


def _other_images(folder: Path) -> ModelError | None:
    """The error of a folder that holds no model, and images of a format that is not read."""
    from compress.data.images import SUFFIXES
    from evaluation.preflight.image_folders import MODEL_FILES, OTHER_SUFFIXES

    if not folder.is_dir() or any((folder / name).is_file() for name in MODEL_FILES):
        return None
    counts = Counter(file.suffix.lower() for file in folder.rglob("*") if file.suffix.lower() in OTHER_SUFFIXES)
    if not counts:
        return None
    message = ", ".join(f"{count} {suffix} files" for suffix, count in counts.most_common())
    read = ", ".join(SUFFIXES)
    return ModelError(f"holds {message}, and images are read from {read}", place=str(folder), fix="save them as PNG")


def _own_captions(sides: Sequence[Artifact]) -> Data | None:
    """Where one side is a folder of images, what its images are of; two folders each have their own."""
    from evaluation.preflight.image_folders import captions_of, is_folder

    folders = [side.path for side in sides if is_folder(side)]
    return distinct(captions_of(folders[0])) if len(folders) == 1 else None


def _check(wanted: Wanted, sides: Sequence[Artifact], data: Data | None) -> dict[str, dict[str, Any]]:
    """The metrics with every parameter filled in."""
    from evaluation.preflight.endpoint_checks import beyond_endpoints
    from evaluation.preflight.image_folders import check_metrics, is_folder
    from evaluation.verdict.gates import problems as gate_problems

    tasks = {side.task for side in sides}
    if len(tasks) > 1:
        raise UserError("the two models do different tasks", fix="compare two models of one task")
    metrics = {name: find_metric(name) for name in (*wanted.metrics, *wanted.gates)}
    if any(map(is_folder, sides)):
        check_metrics([(name, metric.needs) for name, metric in metrics.items()])
    if data and (misplaced := tuple(kind_problems(data, find_task(sides[0].task), "--data"))):
        raise ManyProblems(misplaced)
    if data and (unread := [p for side in sides if side.components for p in chat_problems(data, side, "--data")]):
        raise ManyProblems(tuple(dict.fromkeys(unread)))
    for name, metric in metrics.items():
        if why := misfit(name, find_task(sides[0].task), data):
            raise UserError(
                why.replace("this model does", "these do"), fix="drop it from --metrics (metrics= in Python)"
            )
        if metric.needs_data and data is None and not any(map(is_folder, sides)):
            raise UserError(f"{name} needs evaluation data", fix="give some with --data (data= in Python)")
    problems = [
        Problem(
            f"--{name}", f"none of these metrics has a {name}", f"add one of {', '.join(takers(name))} to --metrics"
        )
        for name in unused(wanted.spec, wanted.metrics)
    ]
    checked = {
        name: check_values(metrics[name].params, given, name, "metrics", problems)
        for name, given in spread(wanted.metrics, wanted.spec).items()
    }
    problems += _misplaced(wanted)
    problems += beyond_endpoints(sides, wanted.metrics, data, wanted.spec)
    if wanted.spec.controls:
        message = "evaluate.controls names steps of a recipe, and here are two models"
        problems.append(Problem("spec", message, "compare each control with the baseline by itself, or write a recipe"))
    for name, gate in wanted.gates.items():
        if name not in wanted.metrics:
            problems.append(Problem("gates", f"{name} is gated and not measured", f"add it to --metrics: …,{name}"))
        if why := gate_problems(gate, metrics[name]):
            problems.append(Problem("gates", f"gate {name}: {why}", f"`pare explain {name}` and `pare explain gates`"))
    if problems:
        raise ManyProblems(tuple(problems))
    return {name: params.model_dump(mode="json") for name, params in checked.items() if params is not None}


def compare(old: Path, new: Path, out: Path, *, across_machines: bool = False, tolerance: str = "10%") -> Comparison:
    """Compare one run's candidate with another's; writes the reports into `out`.

    Args:
        old, new: `result.json`, or the folder it lies in.
        across_machines: compare only what each run's ratios to its own baseline say.
        tolerance: by how much a speed, a size or a memory may be worse.

    Raises:
        UserError: a file is no result, or the two cannot be compared.
    """
    from evaluation.comparison.two_runs import Run, against
    from evaluation.report import write

    for path in (old, new):
        if out.resolve() == (path if path.is_dir() else path.parent).resolve():
            raise UserError(
                "the comparison would overwrite a run",
                place=str(out),
                fix="give another folder with --out (out= in Python)",
            )
    one, other = (Run(*_read(path)) for path in (old, new))
    found = replace(against(one, other, across_machines, tolerance), directory=str(out))
    write(found, out)
    return found


def tabulate(places: Sequence[Path], emit: Emit) -> list[Comparison]:
    """The runs in these folders: each holds a `result.json`, or folders that do. What holds none that reads is warned of.

    Raises:
        UserError: none of them holds a run.
    """
    found: list[Comparison] = []
    problems: list[Problem] = []
    for place in places:
        for run in _runs(place) or [partial(_no_run, place)]:
            try:
                found.append(run())
            except UserError as error:
                problems += error.problems
    if not found:
        raise ManyProblems(tuple(problems))
    for problem in problems:
        emit(Event("warning", "left out of the table", message=str(problem)))
    return found


def _runs(place: Path) -> list[Callable[[], Comparison]]:
    """What reads each run in a folder."""
    inside = [place] if (place / RESULT).is_file() else sorted(f.parent for f in place.glob(f"*/{RESULT}"))
    return [partial(_found, folder) for folder in inside]


def _found(folder: Path) -> Comparison:
    return _read(folder)[0]


def _no_run(place: Path) -> Comparison:
    if not place.is_dir():
        raise UserError("no such folder of runs", place=str(place), fix="give folders that `pare run` wrote")
    began = f", and {EVENTS} tells of a run that did not finish" if (place / EVENTS).is_file() else ""
    raise UserError(f"holds no result.json{began}", place=str(place), fix="give folders that `pare run` wrote")


def _read(path: Path) -> tuple[Comparison, Path]:
    """A result, and the folder that its samples lie in."""
    from evaluation.report import result

    file = path / RESULT if path.is_dir() else path
    try:
        return result.from_dict(json.loads(file.read_text())), file.parent / "samples"
    except OSError as error:
        raise UserError(
            f"does not read: {error.strerror}", place=str(file), fix="give the result.json of a run"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is no result: {error}", place=str(file), fix="give the result.json of a run") from error
