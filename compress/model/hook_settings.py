"""Settings that are hooked into torch modules when an artifact is opened: which there are, what they go with, and where they do not run.

The stages of the same names leave them behind, `opening/hooks.py` applies them. A model's files stay its library's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from compress.artifact import Artifact, Setting
from compress.catalogue import find_stage, stage_names
from compress.errors import Problem, Refusal
from compress.machine.devices import CPU, Opening, kind_of
from compress.pipelines.index import LEFT_OUT

APART = "leave one of the two out"
COMPILE, GRAPH, OFFLOAD = "accelerate.compile", "accelerate.cuda_graph", "accelerate.offload"
ATTENTION, STEP_CACHE, INTERVAL = "accelerate.attention", "accelerate.step_cache", "accelerate.guidance_interval"
# In the order in which they are applied: a graph replays compiled code; what tells steps apart stands around all that runs in one.
APPLIED = (ATTENTION, COMPILE, GRAPH, OFFLOAD, STEP_CACHE, INTERVAL)
BY_STEP = (STEP_CACHE, INTERVAL)  # that do at one step what they do not at another
# Packed weights whose calls ask the GPU for numbers on the way (bitsandbytes looks for outliers in 8 bits), so that none is captured.
ASKING = (("bitsandbytes", 8),)


def hooked(artifact: Artifact, name: str, components: Iterable[str] = (), **params: object) -> Artifact:
    """The same artifact, opened with one hook more, which only pare does: on these components, or the main one where none is named."""
    settings = artifact.settings
    hook = (*settings.hook, *(Setting(name, one, params) for one in tuple(components) or (artifact.main,)))
    return replace(artifact, settings=replace(settings, hook=hook, needs_pare=True))


def unhooked(artifact: Artifact) -> Artifact:
    """The same artifact, opened as it is stored, and called as its library calls it."""
    return replace(artifact, settings=replace(artifact.settings, hook=(), lean=False))


def unhookable(artifact: Artifact, name: str, **params: object) -> str:
    """Why an artifact cannot have a hook with these parameters, whatever the device; or ""."""
    there = [one.name for one in artifact.settings.hook if one.component == artifact.main]
    if name in there:
        return Refusal(f"the model has {name} already", "leave this stage out")
    if there and OFFLOAD in (name, *there):
        other = name if name != OFFLOAD else there[0]
        wants = "is not tried with other than" if other == ATTENTION else "wants"
        why = f"{other} {wants} weights that stay where they are, and {OFFLOAD} moves them at each call"
        return Refusal(why, APART)
    if name == OFFLOAD:
        return _unmovable(artifact)
    if name in BY_STEP and artifact.settings.lean:
        return Refusal("the lean call goes through its steps by itself, and tells nobody which it is at", APART)
    if name in (STEP_CACHE, COMPILE, GRAPH) and (why := _whole(artifact, name, params)):
        return why
    packed = artifact.components[artifact.main].quantization
    if name == GRAPH and packed and (packed.method, packed.bits) in ASKING:
        message = f"the weights of `{artifact.main}` are {packed.method} in {packed.bits} bits"
        why = f"{message}, whose calls ask the GPU for numbers on the way: no graph can be taken of them"
        return Refusal(why, "leave this stage out, or give the unquantized checkpoint")
    return ""


def _whole(artifact: Artifact, name: str, params: Mapping[str, object]) -> str:
    """Why code or graphs of whole calls and a cache that passes parts of them over do not go together, or ""."""
    given = {one.name: one.params for one in artifact.settings.hook if one.component == artifact.main} | {name: params}
    if STEP_CACHE not in given:
        return ""
    if GRAPH in given:
        return Refusal(f"{GRAPH} replays calls whole, and {STEP_CACHE} passes parts of them over at some steps", APART)
    if COMPILE in given and given[STEP_CACHE].get("method") != "deep":
        why = f"the blocks that {COMPILE} compiles are those that {STEP_CACHE} passes over, and would be compiled anew as it decides"
        return Refusal(why, APART)
    return ""


def losses(artifact: Artifact) -> tuple[str, ...]:
    """The hooks of an artifact after which it gives other numbers, beyond rounding."""
    known = dict.fromkeys(one.name for one in artifact.settings.hook if one.name in stage_names())
    return tuple(name for name in known if find_stage(name).lossy)


def movable(artifact: Artifact) -> tuple[str, ...]:
    """The components whose weights take turns on the device where a model is offloaded: all that are opened."""
    return tuple(name for name in artifact.components if name not in LEFT_OUT)


def _unmovable(artifact: Artifact) -> str:
    """Why the weights of an artifact cannot take turns on a device, or ""."""
    if artifact.settings.lean:
        return Refusal("the lean call wants components that stay where they are", APART)
    for name in movable(artifact):
        part = artifact.components[name]
        if part.format != "torch":
            return Refusal(f"`{name}` is {part.format}, an engine that holds its weights itself", APART)
        if part.quantization:
            message = f"the weights of `{name}` are packed ({part.quantization.method}), and packed weights are not moved at each call"
            return Refusal(message, "leave this stage out, or give the unquantized checkpoint")
    return ""


def offloaded(artifact: Artifact) -> bool:
    """Whether the weights of an artifact are meant to wait in the processor's memory."""
    return any(one.name == OFFLOAD for one in artifact.settings.hook)


def loaded_to(artifact: Artifact, opening: Opening) -> Opening:
    """How the components of an artifact are loaded: as it is opened, but to the processor's memory where they wait there for their turn."""
    absent = {one.name for one, _ in not_there(artifact, opening)}
    return replace(opening, device=CPU) if offloaded(artifact) and OFFLOAD not in absent else opening


def unknown_hooks(artifact: Artifact) -> tuple[str, ...]:
    """The settings of an artifact that this pare does not apply."""
    settings = artifact.settings
    return tuple(
        one.name for one in (*settings.graph, *settings.hook) if one in settings.graph or one.name not in APPLIED
    )


def not_there(artifact: Artifact, opening: Opening) -> Iterator[tuple[Setting, str]]:
    """The hooks of an artifact that do nothing on a device, each with why; one that several components have comes once."""
    for one in {one.name: one for one in reversed(artifact.settings.hook)}.values():
        if one.name in stage_names() and (why := find_stage(one.name).elsewhere(kind_of(opening.device))):
            yield one, why


def hook_problems(artifact: Artifact, opening: Opening, place: str) -> Iterator[Problem]:
    """What an artifact is meant to run with and cannot on the device of a run."""
    for one, why in not_there(artifact, opening):
        yield Problem(
            place, f"`{one.component}` is meant to run with {one.name}: {why}", "give the device that it is for"
        )
