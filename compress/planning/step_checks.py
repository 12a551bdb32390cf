"""What a plan finds wrong with a model, and with the stages that it is given to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

from compress.adapters.keeping import EXTRA, LIBRARY
from compress.artifact import CHOSEN, MANIFEST, Artifact
from compress.catalogue import Stage, find_engine, find_stage, find_task, tasks_for
from compress.errors import Problem, Refusal, UserError
from compress.machine import deps
from compress.machine.devices import Opening, kind_of
from compress.model.hook_settings import APART, BY_STEP, OFFLOAD, hook_problems, offloaded
from compress.model.layer_checks import layer_problems
from compress.model.remote_code import code_problems
from compress.model.shape_checks import shape_problems
from compress.model.weight_files import weight_problems
from compress.planning import chain_remedies
from compress.planning.calls import call_problems
from compress.quantization.packed_places import engine_beside, packed_place_problems
from compress.recipe.values import Recipe, StepSpec, is_model
from compress.tokenizers.files import tokenizer_problems
from compress.tokenizers.vocabulary import vocabulary_problems

LAID = frozenset({"files"})  # effects of a stage that lays files beside a model
CALLED = "compress.apply("  # begins the place of a stage that is called from Python, without a recipe


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
    yield from packed_place_problems(artifact, opening, place)
    if artifact.adapters and opening.adapters and not deps.installed(LIBRARY):
        message = (
            f"the adapter {next(iter(artifact.adapters))} is kept beside the model, which needs the library {LIBRARY}"
        )
        yield Problem(place, message, f"pip install 'pare[{EXTRA}]'")
    if artifact.settings.lean and offloaded(artifact):
        yield Problem(
            place, f"the lean call wants components that stay where they are, and {OFFLOAD} moves them", APART
        )
    if artifact.settings.lean and (hooks := [one.name for one in artifact.settings.hook if one.name in BY_STEP]):
        message = f"the lean call goes through its steps by itself, and {hooks[0]} has to know which it is at"
        yield Problem(place, message, APART)
    for name in artifact.packed(artifact.components):
        packed = artifact.components[name].quantization
        if artifact.components[name].format != "torch":
            continue  # an engine's own library opens what it packed, and some engines have two
        if packed and not packed.library:
            message = f"the weights of `{name}` are packed by a method that pare does not know ({packed.method[:40]})"
            yield Problem(place, message, "give the unquantized checkpoint")
        elif packed and not deps.version(packed.library):
            message = (
                f"the weights of `{name}` are {packed.method}, which {packed.library} opens, and it is not installed"
            )
            whole = "give the unquantized checkpoint"
            extra = deps.extras_of("pare").get(deps.canonical(packed.library), "")
            how = f"'pare[{extra}]'" if extra else packed.library  # an extra brings what the library needs beside it
            yield Problem(place, message, whole if changed else f"pip install {how}, or {whole}")


def _manifest(artifact: Artifact) -> str:
    manifest = artifact.path / MANIFEST
    return str(manifest if manifest.is_file() else artifact.path)


def engine_places(artifact: Artifact, opening: Opening, place: str) -> Iterator[Problem]:
    """Which parts of an artifact are engines that do not run on the device of a run."""
    for name, part in artifact.components.items():
        unfit = find_engine(part.format).unfit if part.format != CHOSEN else None
        if why := elsewhere(part.format, opening):
            fix = why.fix if isinstance(why, Refusal) else "device: cpu"
            yield Problem(place, f"`{name}`: {why}", f"{fix}, or give the torch model")
        elif unfit and (why := unfit(artifact.folder(name), opening.device)):
            fix = "run the recipe again: it builds the engine anew; or give the device that it was compiled for, or the torch model"
            yield Problem(place, f"`{name}`: {why}", fix)


@contextmanager
def configs_read() -> Iterator[None]:
    """Around what reads a model's configs: a field that is lacking, or of another type, is the model's fault and reported as such.

    Raises:
        UserError: in place of the error that such a field ends in.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ZeroDivisionError) as error:
        message = f"the model's config does not read as one of its class: {type(error).__name__}: {error}"
        fix = (
            "look for a field that is lacking, or of another type, in config.json; if there is none, please report this"
        )
        raise UserError(message, fix=fix) from error


def input_problems(
    step: StepSpec, stage: Stage, artifact: Artifact, known: Mapping[str, Artifact]
) -> Iterator[Problem]:
    """What is wrong with the further artifacts that a step names, such as its teacher.

    Args:
        known: what earlier steps leave, by id, and the models of their own that steps are given. One that is not among them was
            not found, which is reported already.
    """
    for role, name in step.inputs.items():
        place, called = step.at(role), f"{step.stage}: its {role} `{name}`"
        if role not in stage.inputs:
            yield Problem(place, f"{step.stage} takes no {role}", "remove it")
        elif name not in known:
            if not is_model(name):
                message = f"{step.stage}: input `{role}` names `{name}`, which is no earlier step"
                yield Problem(place, message, "name one, source, or a model as ./folder")
        elif (given := known[name]).task != artifact.task:
            message = f"{called} does {given.task}, and this model does {artifact.task}"
            yield Problem(place, message, f"give a model for {artifact.task}")
        elif not all(stage.takes(format) for format in _learnt_from(stage, given)):
            fix = "give the torch model" if is_model(name) else "name a step before the engine"
            yield Problem(place, f"{called} is an engine there", fix)
        elif given.packed((given.main,)) and not stage.packed:
            method = given.components[given.main].quantization
            message = f"the weights of `{given.main}` are {method.method if method else ''}"
            before = name != "source" and not is_model(name)
            fix = "name a step before the one that packs it, or source" if before else "give the unquantized checkpoint"
            yield Problem(place, f"{called} is packed: {message}", fix)


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
        message = f"{stage.name} works on {fits}, and this model does {artifact.task}"
        return [Problem(place, message, chain_remedies.for_task(stage, find_task(artifact.task)))]
    each = (p for name in touched for p in _component_problems(recipe, step, stage, artifact, name, opening))
    found = list(dict.fromkeys(each))  # what no component has to do with stands once
    where = "" if found else stage.elsewhere(kind_of(opening.device))
    if not found and (why := where or stage.misplaced(artifact, step.params, opening.device)):
        fix = why.fix if isinstance(why, Refusal) else "give another device, or leave this stage out"
        found.append(Problem(place, f"{stage.name}: {why}", fix))
    if not found and not touched:
        formats = sorted({artifact.components[name].format for name in artifact.working})
        message = f"{stage.name} takes {' or '.join(stage.formats)}, and nothing is left: all is {', '.join(formats)}"
        found.append(Problem(place, message, "remove it, or give it `from:` an earlier step"))
    found += _after_export(step, stage, artifact)
    with configs_read():
        why = "" if found else stage.refuse(artifact, step.params) or engine_beside(stage, tuple(touched), artifact)
    if why:
        remedy = why.fix if isinstance(why, Refusal) else ""
        fix = remedy or f"`pare explain {stage.name}` says what it can do"
        found.append(Problem(place, f"{stage.name}: {why}", fix))
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


def _after_export(step: StepSpec, stage: Stage, artifact: Artifact) -> Iterator[Problem]:
    """What an earlier step of this recipe laid beside the model tells of the model as it was then."""
    laid = [p.stage for p in artifact.lineage if p.stage.startswith("export.") and not p.key]
    names = [name for name in laid if find_stage(name).effects == LAID]
    if names and stage.effects != LAID:
        message = f"{names[0]} tells of the model as it is, and {stage.name} would make another of it"
        yield Problem(step.place, message, f"put {names[0]} last")


def _give(role: str, place: str) -> str:
    """How a stage is given data: by a recipe, or by whoever calls it alone from Python."""
    return f"add {role}=…" if place.startswith(CALLED) else f"add data: {{{role}: …}}"


def _component_problems(
    recipe: Recipe, step: StepSpec, stage: Stage, artifact: Artifact, name: str, opening: Opening
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
        fix = chain_remedies.for_format(recipe, step, stage, artifact, name)
        yield Problem(place, f"{stage.name} takes {takes}, but `{name}` is {part.format} {after}", fix)
        return
    if part.quantization and stage.makes and not stage.packed:
        message = f"the weights of `{name}` are {part.quantization.method} already, and {stage.name} cannot change packed weights"
        yield Problem(place, message, chain_remedies.for_packed(recipe, step, stage, artifact, name))
    yield from _level_problems(step, stage, artifact, name)
    yield from _adapter_problems(step, stage, artifact, name)
    left = stage.leaves(part.format)
    if left != part.format and stage.formats and (why := _nowhere(left, step, stage, opening)):
        fix = why.fix if isinstance(why, Refusal) else "device: cpu"
        yield Problem(place, f"{stage.name}: {why}", f"{fix}, or leave this stage out")


def _adapter_problems(step: StepSpec, stage: Stage, artifact: Artifact, name: str) -> Iterator[Problem]:
    """Adapters beside the model that would not go on working on what a stage makes of a component."""
    kept = [called for called, one in artifact.adapters.items() if name in one.components] if stage.makes else []
    if not kept:
        return
    front = f"{stage.name}: the adapter {kept[0]} is kept beside `{name}`"
    beside = (
        f"leave out fuse: false of the adapter, and it is fused in before the first stage; or leave out {stage.name}"
    )
    if stage.leaves(artifact.components[name].format) != artifact.components[name].format:
        yield Problem(
            step.place, f"{front}, and an engine has its weights inside, where no adapter reaches them", beside
        )
    elif not stage.carries:
        yield Problem(step.place, f"{front}, and what becomes of an adapter there is not defined", beside)


def _nowhere(left: str, step: StepSpec, stage: Stage, opening: Opening) -> str:
    """Why nothing that a stage makes runs on the device of a run, or ""; of a stage that chooses, nothing that it tries."""
    tried = [called.leaves("torch") for called in stage.calls(step.params)] if left == CHOSEN else [left]
    whys = list(dict.fromkeys(elsewhere(format, opening) for format in tried))
    return whys[0] if len(whys) == 1 else "; ".join(whys) if all(whys) else ""


def _level_problems(step: StepSpec, stage: Stage, artifact: Artifact, name: str) -> Iterator[Problem]:
    """Settings that do not reach what a stage builds: an engine has no modules to hook, and work on hooked ones would go astray."""
    changes = stage.leaves(artifact.components[name].format) != artifact.components[name].format
    for hook in artifact.settings.hook if stage.makes else ():
        if hook.component != name:
            continue
        if changes:
            message = f"{hook.name} hooks the modules of `{name}`, and the engine that {stage.name} makes has none"
            others = f", or let {stage.name} leave out `{name}`" if len(artifact.components) > 1 else ""
            yield Problem(step.place, message, f"leave one of the two out{others}")
        else:
            message = f"{hook.name} hooks the modules of `{name}`, which {stage.name} changes"
            yield Problem(step.place, message, f"put {hook.name} behind {stage.name}")


def elsewhere(format: str, opening: Opening) -> str:
    """Why an engine does not run on the device of a run, or ""."""
    if opening.device == "cpu" or format == CHOSEN:
        return ""
    engine = find_engine(format)
    if kind_of(opening.device) in engine.devices:
        why = engine.lacks(opening.device)
        remedy = f"device: cpu, or {why.fix}" if isinstance(why, Refusal) else ""
        return Refusal(f"{why}, and the device is {opening.device}", remedy) if why else ""
    return f"{engine.title} runs on {', '.join(sorted(engine.devices))}, and the device is {opening.device}"
