"""What a plan finds wrong with what is measured: metrics, gates, settings and data that do not fit together, or not the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from compress.artifact import Artifact
from compress.catalogue import find_metric, find_stage, find_task, metric_names, stage_names, task_names, tasks_for
from compress.data.items import ALSO, KINDS_OF_DATA, Data, Kind
from compress.data.texts import PROMPTS, ROWS
from compress.errors import Problem
from compress.machine import deps
from compress.machine.library_classes import has_learned_positions
from compress.params import Params, faults
from compress.planning.chat_checks import chat_problems
from compress.recipe.shared_parameters import takers, unused
from compress.recipe.values import EvalSpec, Recipe
from compress.sources.data import LAYOUTS, ZOO
from compress.tasks import OF_DATA, WRITTEN, Task
from compress.tokenizers.vocabulary import positions

METADATA = "metadata.jsonl"


def evaluation_problems(recipe: Recipe, artifact: Artifact | None, data: Mapping[str, Data]) -> Iterator[Problem]:
    """Metrics, gates, settings and data that do not fit together, or not the model.

    Args:
        artifact: the source; None where it has problems of its own.
    """
    from evaluation.verdict.gates import example as gate_example
    from evaluation.verdict.gates import problems as gate_problems

    task = find_task(artifact.task) if artifact else None
    place = recipe.place.get("evaluate.metrics", "")
    for index, name in enumerate(recipe.evaluate.metrics):
        here = recipe.place.get(f"evaluate.metrics.{index}", place)
        yield from _metric_problems(name, here, task, recipe, data.get("evaluate"))
    for name, gate in recipe.gates.items():
        if name in metric_names() and (why := gate_problems(gate, find_metric(name))):
            yield Problem(
                recipe.place.get(f"gates.{name}", ""),
                f"gate {name}: {why}",
                f"{gate_example(find_metric(name))}; `pare explain {name}` and `pare explain gates` tell more",
            )
    if task is None:
        return
    yield from _foreign_settings(recipe, task)
    decided = any(step.if_faster for step in recipe.stages)
    if artifact and (why := too_long(artifact, recipe.evaluate, recipe.evaluate.metrics, decided=decided)):
        named = ("evaluate.new_tokens", "evaluate.prompt_tokens", "evaluate")
        where = next((recipe.place[name] for name in named if name in recipe.place), "")
        yield Problem(where, why, "ask for fewer prompt_tokens or new_tokens")
    yield from _unused(recipe, task)
    for role, found in data.items():
        at = recipe.place.get(f"data.{role}", "")
        taught = role != "evaluate"
        wrong = [] if taught and captions_alone(found, task) else list(kind_problems(found, task, at, taught=taught))
        yield from wrong or (chat_problems(found, artifact, at, scored=role != "calibration") if artifact else ())


def kind_meant(recipe: Recipe) -> Kind | None:
    """The kind of data that a recipe's stages and metrics are for, where its model does not tell; None where they fit several."""
    needs = [find_stage(step.stage).needs for step in recipe.stages if step.stage in stage_names()]
    needs += [find_metric(name).needs for name in recipe.evaluate.metrics]
    fitting = (find_task(one).data for one in task_names() if all(one in tasks_for(each) for each in needs))
    kinds = {ALSO.get(kind, (kind,))[0] for kind in fitting}
    return next(iter(kinds)) if len(kinds) == 1 else None


def captions_alone(data: Data, task: Task) -> bool:
    """Whether data are captions without images, which are all that most stages ask of a model that generates."""
    file = Path(data.source)
    rows = data.kind == "texts" and file.suffix.lower() in ROWS
    return task.data == "captioned_images" and rows and file.name != METADATA


def kind_problems(data: Data, task: Task, place: str = "", *, taught: bool = False) -> Iterator[Problem]:
    """Data of another kind than a task is run on, as texts without images for a model that generates.

    Args:
        taught: whether captions alone would do, were they rows.
    """
    if data.kind != task.data:
        if task.data == "captioned_images" and (fix := _of_images(Path(data.source), taught)):
            message = f"{data.source} holds {KINDS_OF_DATA[data.kind]}, and this model needs {KINDS_OF_DATA[task.data]}"
            yield Problem(place, message, fix)
            return
        ways = " or ".join(layout.title for layout in LAYOUTS if layout.kind == task.data)
        message = f"{data.source} holds {KINDS_OF_DATA[data.kind]}, and this model needs {KINDS_OF_DATA[task.data]}"
        sets = ", or a set of the zoo" if task.data in ZOO else ""
        yield Problem(place, message, f"give {ways}{sets}; `pare explain data` tells all")


def _of_images(file: Path, taught: bool) -> str:
    """What to give in place of a file that holds captions alone, or ""."""
    if file.name == METADATA:
        return f"give its folder: {file.parent}"
    if taught and file.suffix.lower() == ".txt":
        line = PROMPTS.format(name=file.name, stem=file.stem)
        return f"prompts one a line become rows by: {line}"
    return ""


def _metric_problems(name: str, place: str, task: Task | None, recipe: Recipe, data: Data | None) -> Iterator[Problem]:
    from evaluation.preflight.image_counts import too_few

    metric = find_metric(name)
    if metric.needs_data and not recipe.data.evaluate:
        yield Problem(place, f"{name} needs evaluation data", "add data: {evaluate: …}")
    for field, wrong in faults(metric.params, recipe.evaluate.metrics[name]).items():
        where = recipe.place.get(f"evaluate.metrics.{list(recipe.evaluate.metrics).index(name)}.{field}", place)
        yield Problem(where, f"{name}.{field}: {wrong.message}", wrong.fix)
    if task is None:
        return
    if why := misfit(name, task, data):
        yield Problem(place, why, "remove it")
    spec = recipe.evaluate
    if few := too_few(metric, spec.metrics[name], data, spec.samples, task.repeats(spec)):
        yield Problem(place, few.message, few.fix)
    for library in metric.libraries:
        if not deps.version(library):
            extra = f"'pare[{metric.extra}]'" if metric.extra else library
            yield Problem(place, f"{name} needs the library {library}", f"pip install {extra}")


def misfit(name: str, task: Task, data: Data | None) -> str:
    """Why a metric cannot measure models of a task on this data, or ""."""
    metric = find_metric(name)
    if task.fits(metric.needs, OF_DATA):
        return f"{name} measures {', '.join(tasks_for(metric.needs))}, and this model does {task.name}"
    if data is not None and data.kind == task.data and (lacking := task.fits(metric.needs, data.gives)):
        why = next((f" ({data.lacks[need]})" for need in lacking if need in data.lacks), "")
        return f"{name} needs {' and '.join(lacking)}, which {data.source} does not give{why}"
    return ""


def too_long(artifact: Artifact, spec: EvalSpec, metrics: Iterable[str], *, decided: bool = False) -> str:
    """Why a model's table of positions does not reach as far as an evaluation writes, or ""; decided: whether calls are timed to decide
    about a step, too."""
    message, learned = _far(artifact, spec, metrics, decided)
    return message if learned else ""


def beyond_training(artifact: Artifact, spec: EvalSpec, metrics: Iterable[str]) -> str:
    """That an evaluation writes further than a model was trained to, which computes its positions and so goes on; or ""."""
    message, learned = _far(artifact, spec, metrics, False)
    if learned or not message:
        return ""
    return f"{message} (max_position_embeddings): beyond them it is timed and scored on what it never learned; ask for fewer"


def _far(artifact: Artifact, spec: EvalSpec, metrics: Iterable[str], decided: bool) -> tuple[str, bool]:
    """That an evaluation writes further than a model has positions, in words or "", and whether they are learned ones."""
    writing = {"timings", "token_timings", *WRITTEN}
    size = next((s.count for s in find_task(artifact.task).sizes(spec).values() if s.axis == "tokens"), 0)
    if not size or not (decided or any(find_metric(name).needs & writing for name in metrics)):
        return "", False
    config = artifact.known_config(artifact.main)
    most = positions(config)
    if not most or size <= most:
        return "", False
    message = f"prompt_tokens and new_tokens are {size} together, and the model has {most} positions"
    return message, has_learned_positions(str(config.get("model_type", "")))


def _foreign_settings(recipe: Recipe, task: Task) -> Iterator[Problem]:
    """Settings that are another task's own, and would be ignored in silence. One that is null is not given: `--set` takes one out so."""
    spec = recipe.evaluate
    for prefix, record, kind in (
        ("evaluate", spec, "settings"),
        ("evaluate.baseline", spec.baseline, "baseline"),
    ):
        for name in sorted(name for name in record.model_fields_set if getattr(record, name) is not None):
            owners = [other for other in task_names() if name in _fields(find_task(other), kind)]
            if owners and task.name not in owners:
                place = recipe.place.get(f"{prefix}.{name}", recipe.place.get("evaluate", ""))
                message = f"{prefix}.{name} is a setting of {' and '.join(owners)}, and this model does {task.name}"
                yield Problem(place, message, "remove it")


def _unused(recipe: Recipe, task: Task) -> Iterator[Problem]:
    """Parameters given for all metrics that none of these has; those of another task are refused already."""
    own = (name for name in unused(recipe.evaluate, recipe.evaluate.metrics) if name in task.settings.model_fields)
    for name in own:
        message = f"evaluate.{name}: none of these metrics has it"
        yield Problem(
            recipe.place.get(f"evaluate.{name}", ""), message, f"remove it, or measure {', '.join(takers(name))}"
        )


def _fields(task: Task, kind: str) -> Mapping[str, object]:
    record: type[Params] = getattr(task, kind)
    return record.model_fields
