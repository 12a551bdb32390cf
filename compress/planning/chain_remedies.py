"""What to do about a step that gets what another step of its chain has already packed, or made an engine of: a remedy for each kind of
pair, with the steps' own ids. Reads the recipe and the stages' records alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from compress.artifact import CHOSEN, Artifact, read_json
from compress.catalogue import Stage, builders, find_stage, stage_names
from compress.errors import UserError
from compress.model.describing import quantization_of
from compress.recipe.values import Recipe, StepSpec
from compress.tasks import Task

FEW_BITS = "int8_weights"  # the precision that every builder has which quantizes at all
WHOLE = "give the unquantized checkpoint"
ONE_OF_THEM = "keep one of the stages that quantize it"


def for_packed(recipe: Recipe, step: StepSpec, stage: Stage, artifact: Artifact, name: str) -> str:
    """What to do about a component whose weights are packed when a stage gets it: by the model itself, or by a step before."""
    config = artifact.folder(name) / "config.json"
    if config.is_file() and quantization_of(read_json(config)):
        return f"{WHOLE}, or leave this stage out"
    packer = _changed_by(recipe, step, artifact, name)
    if artifact.components[name].format != "torch":
        built = packer and find_stage(packer.stage).leaves("torch") != "torch"
        return f"leave {step.id} out, or the precision of {packer.id}" if packer and built else ONE_OF_THEM
    if packer is None:
        return f"{WHOLE}, or leave this stage out"
    if stage.leaves("torch") != "torch":
        return f"leave {packer.id} out{_in_few_bits(stage, step.id)}; or {_branch(step, packer)}"
    if _packs(stage, artifact, step, name):
        return f"keep one of the two: leave {packer.id} or {step.id} out{_elsewhere(stage, artifact, name)}; or {_branch(step, packer)}"
    return f"put {step.id} before {packer.id}"


def for_format(recipe: Recipe, step: StepSpec, stage: Stage, artifact: Artifact, name: str) -> str:
    """What to do about a component that is of a format which a stage does not take."""
    if artifact.components[name].format == "torch":
        packer = _changed_by(recipe, step, artifact, name) if artifact.components[name].quantization else None
        first = f"leave {packer.id} out, and " if packer else ""
        return f"{first}put {_builders(stage)} before it" if _builders(stage) else "leave this stage out"
    builder = _changed_by(recipe, step, artifact, name)
    if builder is None:
        return "give the torch model, or leave this stage out"
    if not stage.takes("torch"):
        return f"put {_builders(stage)} in place of {builder.id}, or leave this stage out"
    if stage.leaves("torch") != "torch":
        return f"keep one of the two: leave {builder.id} or {step.id} out; or {_branch(step, builder)}"
    if _packs(stage, artifact, step, name):
        return f"leave {step.id} out{_in_few_bits(find_stage(builder.stage), builder.id)}; or {_branch(step, builder)}"
    if stage.effects == {"settings"}:  # an engine has no modules to hook, be it before or behind
        return f"leave {step.id} or {builder.id} out; or {_branch(step, builder)}"
    return f"put {step.id} before {builder.id}"


def for_task(stage: Stage, task: Task) -> str:
    """What to do about a stage that is not for what a model does: others of its verb are."""
    verb = stage.name.partition(".")[0]
    found = [name for name in stage_names() if name.startswith(f"{verb}.") and find_stage(name).works_on(task)]
    return f"remove this stage, or put {' or '.join(found)} in its place" if found else "remove this stage"


def _builders(stage: Stage) -> str:
    """Those that make what a stage takes."""
    return " or ".join(one.name for one in builders() if stage.takes(one.leaves("torch")))


def _branch(step: StepSpec, before: StepSpec) -> str:
    return f"give {step.id} `from: {before.after}`, which makes it a branch of its own"


def _elsewhere(stage: Stage, artifact: Artifact, name: str) -> str:
    """That a stage which may choose can pack something else instead."""
    free = [one for one in artifact.working if not artifact.components[one].quantization and one != name]
    return (
        f", or name other `components:`, such as {free[0]}"
        if free and "components" in stage.params.model_fields
        else ""
    )


def _in_few_bits(builder: Stage, called: str) -> str:
    """How an engine gets weights of few bits: while it is built, or by a stage behind; or that it has none."""
    left, fields = builder.leaves("torch"), builder.params.model_fields
    ways = [
        f"give {called} `{name}: {written}`"
        for name, written in (("precision", FEW_BITS), ("precisions", f"[{FEW_BITS}]"))
        if name in fields and FEW_BITS in _choices(fields[name].annotation)
    ]
    quantizers = (find_stage(name) for name in stage_names() if name.startswith("quantize.") and left != CHOSEN)
    ways += [f"put {one.name} behind it" for one in quantizers if one.takes(left)]
    return f", and {' or '.join(ways)}" if ways else f", for {called} has no few bits"


def _choices(annotation: object) -> tuple[object, ...]:
    """The values of a Literal, or of a tuple of them."""
    if get_origin(annotation) is tuple:
        return _choices(get_args(annotation)[0])
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _packs(stage: Stage, artifact: Artifact, step: StepSpec, name: str) -> bool:
    """Whether a stage would pack a component itself."""
    if stage.name.startswith("quantize."):
        return True
    try:
        return name in stage.forecast(artifact, step.params).quantization
    except (UserError, TypeError, ValueError, LookupError, AttributeError):
        return False  # what is wrong with it is reported when it is planned


def _changed_by(recipe: Recipe, step: StepSpec, artifact: Artifact, name: str) -> StepSpec | None:
    """The step of this chain that left a component as a stage gets it: the last that wrote it; None where the model came so."""
    planned = [(made.stage, dict(made.params)) for made in artifact.lineage if not made.key]
    for before in _chain(recipe, step):
        stage = find_stage(before.stage)
        meant = artifact.choose(getattr(before.params, "components", stage.components), lambda format: True)
        wrote = stage.makes and not stage.packed and name in meant
        if wrote and (before.stage, before.params.counted()) in planned:
            return before
    return None


def _chain(recipe: Recipe, step: StepSpec) -> Iterator[StepSpec]:
    """The steps before one, the nearest first."""
    by_id = {one.id: one for one in recipe.stages}
    while found := by_id.get(step.after):
        yield found
        step = found
