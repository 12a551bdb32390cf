"""Settings that are hooked into torch modules when an artifact is opened: which there are, what they go with, and where they do not run.

The stages of the same names leave them behind, `opening/hooks.py` applies them. A model's files stay its library's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compress.artifact import Artifact, Setting
from compress.catalogue import find_stage, stage_names
from compress.errors import Problem, Refusal
from compress.machine.devices import Opening, kind_of

COMPILE, GRAPH = "accelerate.compile", "accelerate.cuda_graph"
APPLIED = (COMPILE, GRAPH)  # in the order in which they are applied: a graph replays compiled code
# Packed weights whose calls ask the GPU for numbers on the way (bitsandbytes looks for outliers in 8 bits), so that none is captured.
ASKING = (("bitsandbytes", 8),)


def hooked(artifact: Artifact, name: str) -> Artifact:
    """The same artifact, opened with one hook more on its main component, which only pare does."""
    settings = artifact.settings
    hook = (*settings.hook, Setting(name, artifact.main))
    return replace(artifact, settings=replace(settings, hook=hook, needs_pare=True))


def unhookable(artifact: Artifact, name: str) -> str:
    """Why an artifact cannot have a hook, whatever the device; or ""."""
    if any(one.name == name and one.component == artifact.main for one in artifact.settings.hook):
        return Refusal(f"the model has {name} already", "leave this stage out")
    packed = artifact.components[artifact.main].quantization
    if name == GRAPH and packed and (packed.method, packed.bits) in ASKING:
        message = f"the weights of `{artifact.main}` are {packed.method} in {packed.bits} bits"
        why = f"{message}, whose calls ask the GPU for numbers on the way: no graph can be taken of them"
        return Refusal(why, "leave this stage out, or give the unquantized checkpoint")
    return ""


def unknown_hooks(artifact: Artifact) -> tuple[str, ...]:
    """The settings of an artifact that this pare does not apply."""
    settings = artifact.settings
    return tuple(
        one.name for one in (*settings.graph, *settings.hook) if one in settings.graph or one.name not in APPLIED
    )


def not_there(artifact: Artifact, opening: Opening) -> Iterator[tuple[Setting, str]]:
    """The hooks of an artifact that do nothing on a device, each with why."""
    for one in artifact.settings.hook:
        if one.name in stage_names() and (why := find_stage(one.name).elsewhere(kind_of(opening.device))):
            yield one, why


def hook_problems(artifact: Artifact, opening: Opening, place: str) -> Iterator[Problem]:
    """What an artifact is meant to run with and cannot on the device of a run."""
    for one, why in not_there(artifact, opening):
        yield Problem(
            place, f"`{one.component}` is meant to run with {one.name}: {why}", "give the device that it is for"
        )
