"""The single path that the command line and Python share: check · plan · run · apply · load · evaluate."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.cache import Cache, default_root, disk_errors
from compress.devices import CPU, Opening, settled
from compress.errors import RecipeError, UserError
from compress.events import Emit, Event, silent
from compress.executors import LOCAL, Executor, find_executor
from compress.recipe import SCHEMA_VERSION, EvalSpec, Gate, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compress.execute import Done
    from compress.planning import Plan
    from evaluation.scores import Comparison

RUNS = Path("runs")


def check(
    recipe: str | Path | Recipe, overrides: Sequence[str] = (), *, cache: str | Path | None = None
) -> tuple[Recipe, ...]:
    """Read a recipe and see whether it can work; more than one with `matrix`.

    Raises:
        RecipeError: every problem at once, each located.
    """
    return tuple(p.recipe for p in plan_all(recipe, overrides, cache=cache))


def plan(recipe: str | Path | Recipe, overrides: Sequence[str] = (), *, cache: str | Path | None = None) -> Plan:
    """The plan of a recipe without a matrix: stages, keys, what is cached, disk and memory.

    Raises:
        RecipeError: every problem at once, each located.
        UserError: the recipe fans out.
    """
    return _only(plan_all(recipe, overrides, cache=cache), "plan_all")


def plan_all(
    recipe: str | Path | Recipe, overrides: Sequence[str] = (), *, cache: str | Path | None = None
) -> tuple[Plan, ...]:
    """The plan of every recipe that a matrix fans out into; of one that was read already, its own."""
    from compress.planning import make_plan
    from compress.reading import read_recipes

    store = open_cache(cache)
    if isinstance(recipe, Recipe):
        return (make_plan(recipe.with_(*overrides) if overrides else recipe, store),)
    return tuple(make_plan(r, store) for r in read_recipes(Path(recipe), overrides))


def run(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    emit: Emit = silent,
    executor: str = LOCAL,
) -> Comparison:
    """Run a recipe without a matrix: stages, then the comparison with the baseline.

    Args:
        out: folder for result.json and the reports; default `runs/<name>` below the current one.
        executor: who runs the stages, by the name of its file in `compress/executors`.

    Raises:
        RecipeError: every problem at once, each located.
        UserError: no executor is called so.
        StageFailed: a stage failed; what finished before stays cached.
    """
    running = find_executor(executor)
    found = _only(plan_all(recipe, overrides, cache=cache), "run_all")
    return run_plan(found, open_cache(cache), Path(out) if out else RUNS / found.recipe.name, emit, running)


def run_all(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    emit: Emit = silent,
    executor: str = LOCAL,
) -> tuple[Comparison, ...]:
    """Run every recipe of a matrix, one after the other; shared stages run once."""
    running = find_executor(executor)
    plans = plan_all(recipe, overrides, cache=cache)
    parent = Path(out) if out else RUNS
    folders = [parent if out and len(plans) == 1 else parent / p.recipe.name for p in plans]
    store = open_cache(cache)
    return tuple(run_plan(p, store, folder, emit, running) for p, folder in zip(plans, folders, strict=True))


def run_plan(found: Plan, cache: Cache, out: Path, emit: Emit, executor: Executor | None = None) -> Comparison:
    """Execute a plan and compare its last artifact with the baseline; writes the log and the reports into `out`."""
    from compress.evaluating import measure
    from evaluation.compare import Request

    recipe = found.recipe
    with disk_errors(out), _logged(out, emit) as log, cache.holding() as store:
        done = (executor or find_executor(LOCAL)).run(_with_weights(found), store, log)
        for one in done:
            store.hold(one.key)  # whichever process made it, this one goes on to measure it
        baseline = replace(found.source.artifact, digest=found.source.key)
        request = Request(
            name=recipe.name,
            candidate=done[-1].artifact if done else baseline,
            baseline=baseline,
            data=found.data.get("evaluate"),
            spec=recipe.evaluate,
            gates=recipe.gates,
            recipe_text=recipe.told,
            stages=tuple(_stage_row(d, cache) for d in done),
            workdir=out,
            evidence_dirs=_evidence_dirs(recipe, cache),
            chain=_chain(done),
            opening=found.opening.of(None),
        )
        return measure(request, log)


def evaluate(
    candidate: str | Path,
    baseline: str | Path,
    *,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]],
    gates: Mapping[str, Gate] | None = None,
    data: str = "",
    spec: EvalSpec | None = None,
    device: str = CPU,
    trust_remote_code: bool = False,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    emit: Emit = silent,
) -> Comparison:
    """Compare any two of: model folder, artifact, `zoo://…`, folder of pictures. No recipe is needed.

    Args:
        metrics: names, or names with their parameters.
        device: cpu, cuda, cuda:1, mps, or auto for the best there is.
        trust_remote_code: whether Python code in the models' folders may run.

    Raises:
        UserError: a folder is none of these, a metric or gate does not fit, there is no such device here, or a side cannot
            be opened there.
    """
    from compress import evaluating

    store, folder = open_cache(cache), Path(out) if out else RUNS / "evaluation"
    store.prepare()
    asked = metrics if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    wanted = evaluating.Wanted(asked, gates or {}, data, spec or EvalSpec(), device, trust_remote_code)
    request = evaluating.prepare(str(candidate), str(baseline), wanted, store, folder)
    with disk_errors(folder), _logged(folder, emit) as log:
        return evaluating.measure(request, log)


def compare(
    old: str | Path,
    new: str | Path,
    *,
    across_machines: bool = False,
    tolerance: str = "10%",
    out: str | Path | None = None,
) -> Comparison:
    """Hold one run's candidate against another's, from their `result.json` and the samples beside it.

    Raises:
        UserError: a file is no result.
        NotComparable: the runs differ in protocol, baseline or machine.
    """
    from compress import evaluating

    folder = Path(out) if out else RUNS / "compared"
    with disk_errors(folder):
        return evaluating.compare(Path(old), Path(new), folder, across_machines=across_machines, tolerance=tolerance)


def report(places: Sequence[str | Path]) -> list[Comparison]:
    """The runs in these folders, to be tabulated.

    Raises:
        UserError: a place holds no run.
    """
    from compress import evaluating

    return evaluating.tabulate([Path(place) for place in places])


def reference(source: str, features: str, out: str | Path, *, resize: str = "pil", count: int = 0) -> int:
    """Write mean and covariance of real pictures' features as the usual `.npz` (mu, sigma), for `fid`'s `reference`.

    Args:
        count: of the first pictures; 0: of all.

    Returns:
        Of how many pictures.

    Raises:
        UserError: the source has no pictures, or the features do not open.
    """
    from evaluation.features.pictures import export_reference

    return export_reference(source, features, resize, Path(out), count)


def apply(
    stage: str,
    model: str | Path,
    parameters: Mapping[str, object] | None = None,
    *,
    seed: int = 0,
    device: str = CPU,
    trust_remote_code: bool = False,
    calibration: str = "",
    train: str = "",
    cache: str | Path | None = None,
    emit: Emit = silent,
    **params: object,
) -> Artifact:
    """Run one stage on a model folder, `zoo://…` or artifact: a recipe of one stage, read, planned, cached and checked as any.

    Args:
        parameters: of the stage, as a recipe has them; or give them by name.
        device: cpu, cuda, cuda:1, mps, or auto for the best there is.
        trust_remote_code: whether Python code in the model's folder may run.

    Raises:
        RecipeError: everything wrong at once: the stage is unknown, a parameter is wrong, or the stage cannot work on this model.
        StageFailed: it failed.
    """
    from compress.execute import execute
    from compress.planning import make_plan
    from compress.reading import read_values

    place = f'compress.apply("{stage}")'
    values = {
        "schema": SCHEMA_VERSION,
        "name": "apply",
        "model": _reference(model),
        "seed": seed,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "data": {"calibration": calibration, "train": train},
        "stages": [{stage: _parameters(parameters, params, place)}],
    }
    (recipe,) = read_values(values, place)
    store = open_cache(cache)
    return execute(_with_weights(make_plan(recipe, store)), store, emit)[-1].artifact


def load(artifact: Artifact | str | Path, *, device: str = CPU, trust_remote_code: bool = False) -> Any:
    """A stock diffusers pipeline or transformers model, its engine components in place, ready to call.

    Args:
        device: cpu, cuda, cuda:1, mps, or auto for the best there is.

    Raises:
        ModelError: the folder is no model.
        UserError: there is no such device here, or an engine does not run there.
    """
    from compress.opening import open_task
    from compress.sources import fetch_weights, find_source

    if not isinstance(artifact, Artifact):
        artifact = fetch_weights(find_source(str(artifact), Path(), None)).artifact
    opening = Opening(device=settled(device), trust_remote_code=trust_remote_code)
    return open_task(artifact, opening).stock


def open_cache(root: str | Path | None) -> Cache:
    return Cache(Path(root).expanduser() if root else default_root())


def _only(plans: tuple[Plan, ...], instead: str) -> Plan:
    if len(plans) != 1:
        raise UserError(f"this recipe's matrix fans out into {len(plans)}", fix=f"call `compress.{instead}`")
    return plans[0]


def _reference(model: str | Path) -> str:
    """A model as a recipe refers to it: a folder by its whole path, whichever way it is given."""
    path = Path(model).expanduser()
    return str(path.absolute()) if isinstance(model, Path) or path.is_dir() else model


def _parameters(given: object, named: Mapping[str, object], place: str) -> dict[str, object]:
    """The parameters given as one mapping, and those given by name.

    Raises:
        UserError: what is given is no mapping, or one is given twice.
    """
    if given is None:
        return dict(named)
    if not isinstance(given, Mapping):
        message = f"the parameters are a {type(given).__name__}, not a mapping"
        raise UserError(message, place=place, fix="give {name: value}, or name=value for each")
    if twice := [name for name in named if name in given]:
        raise UserError(f"{', '.join(twice)} is given twice", place=place, fix="give it in the mapping or by name")
    return {**given, **named}


def _with_weights(found: Plan) -> Plan:
    """The same plan, with the weights of a hub model on this disk."""
    from compress.sources import fetch_weights

    return replace(found, source=fetch_weights(found.source))


def _chain(done: Sequence[Done]) -> tuple[tuple[str, Artifact], ...]:
    """The stages that lead to the candidate, with what each left. What only another stage reads (a teacher) is none."""
    found: list[tuple[str, Artifact]] = []
    by_id, at = {d.id: d for d in done}, done[-1].id if done else ""
    while at in by_id:
        found.append((at, by_id[at].artifact))
        at = by_id[at].after
    return tuple(reversed(found))


def _stage_row(done: Done, cache: Cache) -> Mapping[str, Any]:
    """What a stage left. Its folder is told from the cache's root, so that a committed result names no machine's folders."""
    from compress.hashing import list_files

    size = sum((done.artifact.path / f).stat().st_size for f in list_files(done.artifact.path))
    return {
        "id": done.id,
        "stage": done.stage,
        "key": done.key,
        "digest": done.artifact.digest,
        "cached": done.cached,
        "seconds": round(done.seconds, 3),
        "size_bytes": size,
        "facts": dict(done.facts),
        "path": str(done.artifact.path.relative_to(cache.root)),
    }


def _evidence_dirs(recipe: Recipe, cache: Cache) -> tuple[Path, ...]:
    """Where evidence may lie: the cache, written and read, then what ships beside the recipe, only read."""
    shipped = Path(recipe.file).parent / "evidence"
    return (cache.root / "evidence", shipped) if recipe.file and shipped.is_dir() else (cache.root / "evidence",)


@contextmanager
def _logged(out: Path, emit: Emit) -> Iterator[Emit]:
    """Every event also goes to `events.jsonl` in the run's folder, one JSON object a line."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / "events.jsonl").open("a")
    except OSError as error:
        raise UserError(
            f"cannot write the run's folder: {error.strerror}", place=str(out), fix="give another with --out"
        ) from error
    with stream:

        def log(event: Event) -> None:
            record = {"time": round(time.time(), 3), **{k: v for k, v in vars(event).items() if v}}
            stream.write(json.dumps(record, default=str) + "\n")
            stream.flush()
            emit(event)

        yield log


__all__ = [
    "RecipeError",
    "apply",
    "check",
    "compare",
    "evaluate",
    "load",
    "plan",
    "plan_all",
    "reference",
    "report",
    "run",
    "run_all",
]
