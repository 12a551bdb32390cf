"""What a plan finds wrong with what a recipe asks of its model: metrics, settings and stages that do not fit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from compress import deps
from compress.artifact import CHOSEN, MANIFEST, Artifact, read_json
from compress.calls import call_problems
from compress.catalogue import Stage, find_engine, find_metric, find_task, task_names, tasks_for
from compress.classes import has_learned_positions
from compress.data import KINDS_OF_DATA, LAYOUTS, Data
from compress.describing import quantization_of
from compress.devices import Opening, kind_of
from compress.errors import Problem, UserError
from compress.hooks import hook_problems
from compress.layer_counts import layer_problems
from compress.params import Params, faults
from compress.recipe import EvalSpec, Recipe, StepSpec, is_model
from compress.remote_code import code_problems
from compress.shapes import shape_problems
from compress.shared import takers, unused
from compress.tasks import Observable, Task
from compress.texts import PROMPTS, ROWS
from compress.tokenizer_files import tokenizer_problems
from compress.vocabulary import vocabulary_problems
from compress.weights import weight_problems

METADATA = "metadata.jsonl"
CALLED = "compress.apply("  # begins the place of a stage that is called from Python, without a recipe
OF_DATA: frozenset[Observable] = frozenset({"captions", "scenes"})  # what only data can give


def evaluation_problems(recipe: Recipe, artifact: Artifact | None, data: Mapping[str, Data]) -> Iterator[Problem]:
    """Metrics, gates, settings and data that do not fit together, or not the model.

    Args:
        artifact: the source; None where it has problems of its own.
    """
    from evaluation.gates import example as gate_example
    from evaluation.gates import problems as gate_problems

    task = find_task(artifact.task) if artifact else None
    place = recipe.place.get("evaluate.metrics", "")
    for index, name in enumerate(recipe.evaluate.metrics):
        here = recipe.place.get(f"evaluate.metrics.{index}", place)
        yield from _metric_problems(name, here, task, recipe, data.get("evaluate"))
    for name, gate in recipe.gates.items():
        if name in recipe.evaluate.metrics and (why := gate_problems(gate, find_metric(name))):
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
        if role == "evaluate" or not captions_alone(found, task):
            yield from kind_problems(found, task, recipe.place.get(f"data.{role}", ""), taught=role != "evaluate")


def captions_alone(data: Data, task: Task) -> bool:
    """Whether data are captions without pictures, which are all that most stages ask of a model that paints."""
    file = Path(data.source)
    rows = data.kind == "texts" and file.suffix.lower() in ROWS
    return task.data == "captioned_images" and rows and file.name != METADATA


def kind_problems(data: Data, task: Task, place: str = "", *, taught: bool = False) -> Iterator[Problem]:
    """Data of another kind than a task is run on, as texts without pictures for a model that paints.

    Args:
        taught: whether captions alone would do, were they rows.
    """
    if data.kind != task.data:
        if task.data == "captioned_images" and (fix := _of_pictures(Path(data.source), taught)):
            said = f"{data.source} holds {KINDS_OF_DATA[data.kind]}, and this model needs {KINDS_OF_DATA[task.data]}"
            yield Problem(place, said, fix)
            return
        ways = " or ".join(layout.title for layout in LAYOUTS if layout.kind == task.data)
        said = f"{data.source} holds {KINDS_OF_DATA[data.kind]}, and this model needs {KINDS_OF_DATA[task.data]}"
        yield Problem(place, said, f"give {ways}, or a set of the zoo; `pare explain data` tells all")


def _of_pictures(file: Path, taught: bool) -> str:
    """What to give in place of a file that holds captions alone, or ""."""
    if file.name == METADATA:
        return f"give its folder: {file.parent}"
    if taught and file.suffix.lower() == ".txt":
        line = PROMPTS.format(name=file.name, stem=file.stem)
        return f"prompts one a line become rows by: {line}"
    return ""


def _metric_problems(name: str, place: str, task: Task | None, recipe: Recipe, data: Data | None) -> Iterator[Problem]:
    from evaluation.enough import too_few

    metric = find_metric(name)
    if metric.needs_data and not recipe.data.evaluate:
        yield Problem(place, f"{name} needs evaluation data", "add data: {evaluate: …}")
    if task is None:
        return
    if why := misfit(name, task, data):
        yield Problem(place, why, "remove it")
    for field, wrong in faults(metric.params, recipe.evaluate.metrics[name]).items():
        where = recipe.place.get(f"evaluate.metrics.{list(recipe.evaluate.metrics).index(name)}.{field}", place)
        yield Problem(where, f"{name}.{field}: {wrong.said}", wrong.fix)
    spec = recipe.evaluate
    if few := too_few(metric, spec.metrics[name], data, spec.samples, task.repeats(spec)):
        yield Problem(place, few.said, few.fix)
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
    said, learned = _far(artifact, spec, metrics, decided)
    return said if learned else ""


def beyond_training(artifact: Artifact, spec: EvalSpec, metrics: Iterable[str]) -> str:
    """That an evaluation writes further than a model was trained to, which computes its positions and so goes on; or ""."""
    said, learned = _far(artifact, spec, metrics, False)
    if learned or not said:
        return ""
    return (
        f"{said} (max_position_embeddings): beyond them it is timed and scored on what it never learned; ask for fewer"
    )


def _far(artifact: Artifact, spec: EvalSpec, metrics: Iterable[str], decided: bool) -> tuple[str, bool]:
    """That an evaluation writes further than a model has positions, in words or "", and whether they are learned ones."""
    writing = {"timings", "token_timings", "completions"}
    size = next((s.count for s in find_task(artifact.task).sizes(spec).values() if s.axis == "tokens"), 0)
    if not size or not (decided or any(find_metric(name).needs & writing for name in metrics)):
        return "", False
    config = artifact.known_config(artifact.main)
    most = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(most, int) or size <= most:
        return "", False
    said = f"prompt_tokens and new_tokens are {size} together, and the model has {most} positions"
    return said, has_learned_positions(str(config.get("model_type", "")))


def _foreign_settings(recipe: Recipe, task: Task) -> Iterator[Problem]:
    """Settings that are another task's own, and would be ignored in silence."""
    spec = recipe.evaluate
    for prefix, given, kind in (
        ("evaluate", spec.model_fields_set, "settings"),
        ("evaluate.baseline", spec.baseline.model_fields_set, "baseline"),
    ):
        for name in sorted(given):
            owners = [other for other in task_names() if name in _fields(find_task(other), kind)]
            if owners and task.name not in owners:
                place = recipe.place.get(f"{prefix}.{name}", recipe.place.get("evaluate", ""))
                said = f"{prefix}.{name} is a setting of {' and '.join(owners)}, and this model does {task.name}"
                yield Problem(place, said, "remove it")


def _unused(recipe: Recipe, task: Task) -> Iterator[Problem]:
    """Parameters given for all metrics that none of these has; those of another task are refused already."""
    own = (name for name in unused(recipe.evaluate, recipe.evaluate.metrics) if name in task.settings.model_fields)
    for name in own:
        said = f"evaluate.{name}: none of these metrics has it"
        yield Problem(
            recipe.place.get(f"evaluate.{name}", ""), said, f"remove it, or measure {', '.join(takers(name))}"
        )


def _fields(task: Task, kind: str) -> Mapping[str, object]:
    record: type[Params] = getattr(task, kind)
    return record.model_fields


def source_problems(
    artifact: Artifact,
    opening: Opening,
    place: str,
    *,
    fetched: bool = True,
    call: Mapping[str, object] = MappingProxyType({}),
    places: Mapping[str, str] = MappingProxyType({}),
    changed: bool = False,
) -> Iterator[Problem]:
    """What keeps a source from being opened here: packed weights without their library, code of its own, parts that do not fit
    or are not there.

    Args:
        fetched: whether its weights are on this disk already; those of a hub model come when it runs.
        call: arguments that it will be called with, over its own; places: where a recipe gives them.
        changed: whether a stage would change its weights, which it cannot where they are packed.
    """
    if fetched:
        yield from weight_problems(artifact, place)
        yield from layer_problems(artifact)
        yield from shape_problems(artifact)
    yield from find_task(artifact.task).check(artifact)
    yield from call_problems(artifact, {**artifact.settings.call, **call}, places, _manifest(artifact))
    yield from vocabulary_problems(artifact)
    yield from tokenizer_problems(artifact)
    yield from code_problems(artifact, opening.trust_remote_code, place)
    yield from engine_places(artifact, opening, place)
    yield from hook_problems(artifact, opening, place)
    for name in artifact.packed(artifact.components):
        packed = artifact.components[name].quantization
        if artifact.components[name].format != "torch":
            continue  # an engine's own library opens what it packed, and some engines have two
        if packed and not packed.library:
            said = f"the weights of `{name}` are packed by a method that pare does not know ({packed.method[:40]})"
            yield Problem(place, said, "give the unquantized checkpoint")
        elif packed and not deps.version(packed.library):
            said = f"the weights of `{name}` are {packed.method}, which {packed.library} opens, and it is not installed"
            whole = "give the unquantized checkpoint"
            yield Problem(place, said, whole if changed else f"pip install {packed.library}, or {whole}")


def _manifest(artifact: Artifact) -> str:
    told = artifact.path / MANIFEST
    return str(told if told.is_file() else artifact.path)


def engine_places(artifact: Artifact, opening: Opening, place: str) -> Iterator[Problem]:
    """Which parts of an artifact are engines that do not run on the device of a run."""
    for name, part in artifact.components.items():
        if why := elsewhere(part.format, opening):
            yield Problem(place, f"`{name}`: {why}", "device: cpu, or give the torch model")


@contextmanager
def configs_read() -> Iterator[None]:
    """Around what reads a model's configs: a field that is lacking, or of another type, is the model's fault and told as such.

    Raises:
        UserError: in place of the error that such a field ends in.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ZeroDivisionError) as error:
        said = f"the model's config does not read as one of its class: {type(error).__name__}: {error}"
        fix = (
            "look for a field that is lacking, or of another type, in config.json; if there is none, please report this"
        )
        raise UserError(said, fix=fix) from error


def input_problems(
    step: StepSpec, stage: Stage, artifact: Artifact, known: Mapping[str, Artifact]
) -> Iterator[Problem]:
    """What is wrong with the further artifacts that a step names, such as its teacher.

    Args:
        known: what earlier steps leave, by id, and the models of their own that steps are given. One that is not among them was
            not found, which is told already.
    """
    for role, name in step.inputs.items():
        place, called = step.at(role), f"{step.stage}: its {role} `{name}`"
        if role not in stage.inputs:
            yield Problem(place, f"{step.stage} takes no {role}", "remove it")
        elif name not in known:
            if not is_model(name):
                said = f"{step.stage}: input `{role}` names `{name}`, which is no earlier step"
                yield Problem(place, said, "name one, source, or a model as ./folder")
        elif (given := known[name]).task != artifact.task:
            said = f"{called} does {given.task}, and this model does {artifact.task}"
            yield Problem(place, said, f"give a model for {artifact.task}")
        elif not all(stage.takes(format) for format in _learnt_from(stage, given)):
            fix = "give the torch model" if is_model(name) else "name a step before the engine"
            yield Problem(place, f"{called} is an engine there", fix)
        elif given.packed((given.main,)) and not stage.packed:
            method = given.components[given.main].quantization
            said = f"the weights of `{given.main}` are {method.method if method else ''}"
            yield Problem(place, f"{called} is packed: {said}", "give the unquantized checkpoint")


def misfits(step: StepSpec, stage: Stage, artifact: Artifact, known: Mapping[str, Artifact]) -> list[Problem]:
    """Why a stage cannot use what it is given beside the artifact that it works on; of what was not found, nothing."""
    inputs = {role: known[name] for role, name in named_inputs(step, stage).items() if name in known}
    if len(inputs) < len(stage.inputs):
        return []
    with configs_read():
        found = tuple(stage.unfit(artifact, step.params, inputs))
    return [Problem(step.at(one.role), f"{step.stage}: its {one.role}: {one.message}", one.fix) for one in found]


def named_inputs(step: StepSpec, stage: Stage) -> dict[str, str]:
    """By role, what a step is given: an id, source, or a model of its own."""
    return {role: step.inputs.get(role, "source") for role in stage.inputs}


def _learnt_from(stage: Stage, given: Artifact) -> tuple[str, ...]:
    """The formats of what a stage looks at in an artifact that it is given beside the one it continues."""
    parts = given.components
    return tuple(parts[name].format for name in stage.components if name in parts) or (parts[given.main].format,)


def step_problems(
    recipe: Recipe,
    step: StepSpec,
    stage: Stage,
    artifact: Artifact,
    touched: Sequence[str],
    opening: Opening,
) -> list[Problem]:
    """Why a stage cannot work on what is left by the step before it."""
    place = step.place
    if not stage.works_on(find_task(artifact.task)):
        fits = ", ".join(tasks_for(stage.needs))
        said = f"{stage.name} works on {fits}, and this model does {artifact.task}"
        return [Problem(place, said, "remove this stage")]
    found = [p for name in touched for p in _component_problems(step, stage, artifact, name, opening)]
    if not found and (why := stage.elsewhere(kind_of(opening.device))):
        found.append(Problem(place, f"{stage.name}: {why}", "give another device, or leave this stage out"))
    if not found and not touched:
        formats = sorted({artifact.components[name].format for name in artifact.working})
        said = f"{stage.name} takes {' or '.join(stage.formats)}, and nothing is left: all is {', '.join(formats)}"
        found.append(Problem(place, said, "remove it, or give it `from:` an earlier step"))
    with configs_read():
        why = "" if found else stage.refuse(artifact, step.params)
    if why:
        found.append(Problem(place, f"{stage.name}: {why}", f"`pare explain {stage.name}` says what it can do"))
    found += [
        Problem(place, f"{stage.name} needs {role} data", _give(role, place))
        for role in stage.data(step.params)
        if not getattr(recipe.data, role)
    ]
    found += [
        Problem(
            place,
            f"{stage.name} needs the library {library}",
            f"pip install 'pare[{stage.extra}]'" if stage.extra else f"pip install {library}",
        )
        for library in stage.libraries
        if not deps.version(library)
    ]
    return found


def _give(role: str, place: str) -> str:
    """How a stage is given data: by a recipe, or by whoever calls it alone from Python."""
    return f"add {role}=…" if place.startswith(CALLED) else f"add data: {{{role}: …}}"


def _component_problems(
    step: StepSpec, stage: Stage, artifact: Artifact, name: str, opening: Opening
) -> Iterator[Problem]:
    place = step.place
    if name not in artifact.components:
        have = ", ".join(f"`{c}`" for c in artifact.components)
        yield Problem(place, f"{stage.name}: this model has no component `{name}`", f"it has {have}")
        return
    part = artifact.components[name]
    if not stage.takes(part.format):
        takes = " or ".join(stage.formats)
        after = f"after `{step.after}`" if step.after != "source" else "in the source model"
        fix = f"put a stage before it that makes {takes}, or give it `from:` an earlier step"
        yield Problem(place, f"{stage.name} takes {takes}, but `{name}` is {part.format} {after}", fix)
        return
    if part.quantization and stage.makes and not stage.packed:
        said = f"the weights of `{name}` are {part.quantization.method} already, and {stage.name} cannot change packed weights"
        yield Problem(place, said, _unpacked(step, artifact, name))
    yield from _level_problems(step, stage, artifact, name)
    left = stage.leaves(part.format)
    if left != part.format and stage.formats and (why := _nowhere(left, step, stage, opening)):
        yield Problem(place, f"{stage.name}: {why}", "device: cpu, or leave this stage out")


def _unpacked(step: StepSpec, artifact: Artifact, name: str) -> str:
    """What to do about weights that are packed when a stage gets them: by the model itself, or by a stage before."""
    config = artifact.folder(name) / "config.json"
    whole = "give the unquantized checkpoint"
    if step.after == "source" or (config.is_file() and quantization_of(read_json(config))):
        return f"{whole}, or leave this stage out"
    if artifact.components[name].format != "torch":
        return "keep one of the stages that quantize it"
    return f"{whole}, or put this stage before the one that packs them"


def _nowhere(left: str, step: StepSpec, stage: Stage, opening: Opening) -> str:
    """Why nothing that a stage makes runs on the device of a run, or ""; of a stage that chooses, nothing that it tries."""
    tried = [called.leaves("torch") for called in stage.calls(step.params)] if left == CHOSEN else [left]
    whys = [elsewhere(format, opening) for format in tried]
    return "; ".join(dict.fromkeys(whys)) if all(whys) else ""


def _level_problems(step: StepSpec, stage: Stage, artifact: Artifact, name: str) -> Iterator[Problem]:
    """Settings that do not reach what a stage builds: an engine has no modules to hook, and work on hooked ones would go astray."""
    changes = stage.leaves(artifact.components[name].format) != artifact.components[name].format
    for hook in artifact.settings.hook if stage.makes else ():
        if hook.component != name:
            continue
        if changes:
            said = f"{hook.name} hooks the modules of `{name}`, and the engine that {stage.name} makes has none"
            yield Problem(step.place, said, f"leave one of the two out, or let {stage.name} leave out `{name}`")
        else:
            said = f"{hook.name} hooks the modules of `{name}`, which {stage.name} changes"
            yield Problem(step.place, said, f"put {hook.name} behind {stage.name}")


def elsewhere(format: str, opening: Opening) -> str:
    """Why an engine does not run on the device of a run, or ""."""
    if opening.device == "cpu":
        return ""
    if format == CHOSEN or kind_of(opening.device) in (engine := find_engine(format)).devices:
        return ""
    return f"{engine.title} runs on {', '.join(sorted(engine.devices))}, and the device is {opening.device}"
