"""The single path that the command line and Python share: check · plan · run · apply · load · evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.endpoints.address import TIMEOUT
from compress.errors import ManyProblems, UserError
from compress.events import Emit, named, silent
from compress.execution.executors import LOCAL
from compress.machine.devices import CPU, Opening, settled
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec, Recipe
from compress.store.cache import disk_errors, open_cache

if TYPE_CHECKING:
    from compress.planning.plan import Plan
    from evaluation.comparison import Comparison

RUNS = Path("runs")


def check(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    pin: bool = False,
) -> tuple[Recipe, ...]:
    """Read a recipe and see whether it can work; more than one with `matrix`.

    Args:
        pin: first write the commit that each floating hub revision names into the recipe's file.

    Raises:
        RecipeError: every problem at once, each located.
    """
    if pin and not isinstance(recipe, Recipe):
        from compress.commands import pin as pinning

        pinning.pin(Path(recipe))
    return tuple(p.recipe for p in plan_all(recipe, overrides, cache=cache))


def plan(recipe: str | Path | Recipe, overrides: Sequence[str] = (), *, cache: str | Path | None = None) -> Plan:
    """The plan of a recipe without a matrix: stages, keys, what is cached, disk and memory.

    Raises:
        RecipeError: every problem at once, each located.
        UserError: the recipe fans out.
    """
    return _only(plan_all(recipe, overrides, cache=cache), "plan_all")


def text(found: Plan | Comparison) -> str:
    """A plan as `pare plan` prints it, or a comparison as `pare run` ends."""
    from compress.planning.plan import Plan
    from compress.planning.show import plan_text
    from evaluation.report import terminal

    return plan_text(found) if isinstance(found, Plan) else terminal.text(found)


def plan_all(
    recipe: str | Path | Recipe, overrides: Sequence[str] = (), *, cache: str | Path | None = None
) -> tuple[Plan, ...]:
    """The plan of every recipe that a matrix fans out into; of one that was read already, its own."""
    from compress.planning.plan import make_plan, problems_beside
    from compress.recipe.reading import read_partly
    from compress.recipe.sections import refused

    store = open_cache(cache)
    if isinstance(recipe, Recipe):
        return (make_plan(recipe.with_(*overrides) if overrides else recipe, store),)
    found, reported = read_partly(Path(recipe), overrides)
    if reported or not found:
        raise refused([*reported, *(problem for part in found for problem in problems_beside(part, reported, store))])
    return tuple(make_plan(r, store) for r in found)


def run(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    emit: Emit = silent,
    executor: str = LOCAL,
    save: str | Path | None = None,
) -> Comparison:
    """Run a recipe without a matrix: stages, then the comparison with the baseline.

    Args:
        out: folder for result.json and the reports; default `runs/<name>` below the current one.
        executor: who runs the stages, by the name of its file in `compress/executors`.
        save: a new or empty folder to copy the candidate to, whole.

    Raises:
        RecipeError: every problem at once, each located.
        UserError: no executor is called so, or `save` names a folder that holds something else.
        StageFailed: a stage failed; what finished before stays cached.
    """
    from compress.commands.run import run_plan
    from compress.execution.executors import find_executor
    from compress.execution.saving import folders

    running = find_executor(executor)
    found = _only(plan_all(recipe, overrides, cache=cache), "run_all")
    store = open_cache(cache)
    (kept,) = folders(save, (found,), store.root)
    return run_plan(found, store, Path(out) if out else RUNS / found.recipe.name, emit, running, kept)


def run_all(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    emit: Emit = silent,
    executor: str = LOCAL,
    save: str | Path | None = None,
) -> tuple[Comparison, ...]:
    """Run every recipe of a matrix, one after the other; shared stages run once. `save` gets a folder for each."""
    from compress.commands.run import run_plan
    from compress.execution.executors import find_executor
    from compress.execution.saving import folders

    running = find_executor(executor)
    plans = plan_all(recipe, overrides, cache=cache)
    parent = Path(out) if out else RUNS
    outs = [parent if out and len(plans) == 1 else parent / p.recipe.name for p in plans]
    store = open_cache(cache)
    every = zip(plans, outs, folders(save, plans, store.root), strict=True)
    reported = [named(emit, p.recipe.name) if len(plans) > 1 else emit for p in plans]
    return tuple(
        run_plan(p, store, folder, tell, running, kept) for (p, folder, kept), tell in zip(every, reported, strict=True)
    )


def evaluate(
    candidate: str | Path,
    baseline: str | Path,
    *,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]],
    gates: Mapping[str, Gate] | None = None,
    data: str = "",
    spec: EvalSpec | None = None,
    features: str = "",
    reference: str = "",
    device: str = CPU,
    trust_remote_code: bool = False,
    timeout: float = TIMEOUT,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    emit: Emit = silent,
) -> Comparison:
    """Compare any two of: model folder, artifact, `zoo://…`, folder of images, or two OpenAI-compatible endpoints. No recipe is needed.

    Args:
        metrics: names, or names with their parameters.
        features, reference: for every metric that has one and is given none itself: the feature extractor, and the real images.
        device: cpu, cuda, cuda:1, mps, or auto for the best there is.
        trust_remote_code: whether Python code in the models' folders may run.
        timeout: seconds that an endpoint may be silent.

    Raises:
        UserError: a folder is none of these, an endpoint does not answer as it must, a metric or gate does not fit, there is no such device here, or a side cannot
            be opened there.
    """
    from compress.commands import evaluate
    from compress.commands.run import logged
    from compress.commands.wanted import Wanted

    store, folder = open_cache(cache), Path(out) if out else RUNS / "evaluation"
    store.prepare()
    asked = metrics if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    once = {name: given for name, given in (("features", features), ("reference", reference)) if given}
    spec = (spec or EvalSpec()).model_copy(update=once)
    wanted = Wanted(asked, gates or {}, data, spec, device, trust_remote_code, timeout)
    request = evaluate.prepare(str(candidate), str(baseline), wanted, store, folder, emit)
    with disk_errors(folder), logged(folder, emit) as log:
        return evaluate.measure(request, log)


def compare(
    old: str | Path,
    new: str | Path,
    *,
    across_machines: bool = False,
    tolerance: str = "10%",
    out: str | Path | None = None,
) -> Comparison:
    """Compare one run's candidate with another's, from their `result.json` and the samples beside it.

    Raises:
        UserError: a file is no result.
        NotComparable: the runs differ in protocol, baseline or machine.
    """
    from compress.commands import compare

    folder = Path(out) if out else RUNS / "compared"
    with disk_errors(folder):
        return compare.compare(Path(old), Path(new), folder, across_machines=across_machines, tolerance=tolerance)


def report(places: Sequence[str | Path], *, emit: Emit = silent) -> list[Comparison]:
    """The runs in these folders, to be tabulated; a place that holds none is warned of.

    Raises:
        UserError: none of them holds a run.
    """
    from compress.commands.report import tabulate

    return tabulate([Path(place) for place in places], emit)


def reference(
    source: str, features: str, out: str | Path, *, resize: str = "pil", count: int = 0, emit: Emit = silent
) -> int:
    """Write mean and covariance of real images' features as the usual `.npz` (mu, sigma), for `fid`'s `reference`.

    Args:
        count: of the first images; 0: of all.

    Returns:
        Of how many images.

    Raises:
        UserError: the source has no images, or the features do not open.
    """
    from evaluation.features.images import export_reference

    return export_reference(source, features, resize, Path(out), count, emit)


def apply(
    stage: str,
    model: Artifact | str | Path,
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
    from compress.commands.apply import recipe_of, run_stage

    settings = {
        "seed": seed,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "data": {"calibration": calibration, "train": train},
    }
    recipe = recipe_of(stage, model, parameters, params, settings)
    return run_stage(recipe, open_cache(cache), emit)


def load(
    artifact: Artifact | str | Path,
    *,
    device: str = CPU,
    trust_remote_code: bool = False,
    lean: bool | None = None,
    adapters: bool = True,
) -> Any:
    """A stock diffusers pipeline or transformers model, its engine components in place, ready to call.

    Args:
        device: cpu, cuda, cuda:1, mps, or auto for the best there is.
        lean: whether a pipeline's call is the lean one, which generates the very same images in less time (`pare explain
            accelerate.call`); by default, as the artifact is meant to be called.
        adapters: whether the LoRAs that are kept beside it (`fuse: false`) are loaded, each at its scale; they can be switched as any that
            `load_lora_weights` loads.

    Raises:
        ModelError: the folder is no model.
        UserError: there is no such device here, an engine does not run there, the model cannot be opened, or has no lean call.
    """
    from compress.making.ready import ready
    from compress.opening import open_task
    from compress.planning.step_checks import source_problems
    from compress.sources.models import find_source

    if not isinstance(artifact, Artifact):
        artifact = ready(find_source(str(artifact), Path(), None), open_cache(None), silent).artifact
    artifact = artifact if lean is None else artifact.calling_lean(lean)
    opening = Opening(device=settled(device), trust_remote_code=trust_remote_code, adapters=adapters)
    if shut := tuple(source_problems(artifact, opening, str(artifact.path))):
        raise ManyProblems(shut)
    return open_task(artifact, opening).stock


def available() -> dict[str, dict[str, str] | list[str]]:
    """Every task, engine, stage, metric, zoo model and zoo data set, by kind, as `pare list`."""
    from compress.commands.available import inventory

    return inventory()


def explain(name: str = "") -> str:
    """What `pare explain` says of a stage, metric, task or engine, of recipes, gates, data or models.

    Raises:
        UserError: nothing is called so.
    """
    from compress.commands import explain

    return explain.explain(name)


def schema() -> dict[str, Any]:
    """The JSON Schema of recipes."""
    from compress.recipe.schema import recipe_schema

    return recipe_schema()


def doctor(recipes: Sequence[str | Path] = ()) -> dict[str, dict[str, str]]:
    """What this machine has, what recipes need (those in ./recipes where none is given), and how to install what lacks."""
    from compress.commands.doctor import diagnose

    return diagnose([Path(one) for one in recipes])


def cache(root: str | Path | None = None, *, verify: bool = False, max_size: str = "") -> dict[str, Any]:
    """What a cache holds: `root`, `entries`, `kinds`, and the keys that were `evicted`.

    Args:
        verify: hash every file of every entry again.
        max_size: evict what was least recently used down to this, such as "20GB".

    Raises:
        UserError: `max_size` is no size.
    """
    from compress.commands.cache import cache_report

    return cache_report(open_cache(root), verify=verify, max_size=max_size)


def _only(plans: tuple[Plan, ...], instead: str) -> Plan:
    if len(plans) != 1:
        raise UserError(f"this recipe's matrix fans out into {len(plans)}", fix=f"call `compress.{instead}`")
    return plans[0]
