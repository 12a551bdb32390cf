"""What a pipeline takes of the arguments it is called with, read from its class's source: negative prompt, size, scheduler, steps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from compress.artifact import MANIFEST, SCHEDULER, Artifact
from compress.machine.library_classes import source_of
from compress.pipelines.image_inputs import IMAGE_GUIDANCE, STRENGTH, TEXT_ALONE, too_weak
from compress.pipelines.image_sizes import SIDES, own_size, size_faults
from compress.pipelines.index import class_of
from compress.pipelines.schedulers import changes, config_of, faults, foreign, left_out, named_config, reported
from compress.tasks import Fault

NEGATIVE = "negative_prompt"
TRUE_GUIDANCE = "true_cfg_scale"  # of pipelines whose `guidance_scale` is distilled into the model
GUIDANCE = "guidance_scale"
MOST_GUIDANCE = 100  # of a scale: pipelines' own go up to 15, and what lies far above is a slip
STEPS = "num_inference_steps"
FOLDING = ("distill.steps", "distill.guidance")
# As pipelines write it: `return self._guidance_scale > 1`, `do_classifier_free_guidance = guidance_scale > 1.0`.
GUIDED = re.compile(r"(?:return self\._|do_classifier_free_guidance = )guidance_scale > (?P<above>\d+(?:\.\d+)?)")

# Of pipelines that tell a denoiser the scale as an input, and of the denoisers that have one.
GIVEN_SCALE = re.compile(r"guidance = torch\.full\(\[1\], guidance_scale\b")
EMBEDS = re.compile(r"\bguidance_embeds: bool = (?P<default>True|False)")


def call_faults(artifact: Artifact, call: Mapping[str, Any]) -> Iterator[Fault]:
    """What a pipeline refuses, ignores or does not have of what it will be called with.

    Args:
        artifact: with its own call, which its engines were built for.
    """
    kind = class_of(artifact.path)
    takes = call_arguments(kind)
    if takes is not None:
        # Of arguments alone that a recipe gives: what a model's own manifest says is its maker's.
        # An image that it is given is resized to the size that is asked for, also where the pipeline takes none.
        beside = (SCHEDULER, *SIDES) if kind in TEXT_ALONE else (SCHEDULER,)
        asked = (n for n in call if n not in beside and n not in artifact.settings.call)
        yield from (_untaken(kind, name) for name in asked if name not in takes)
        yield from _ignored_prompt(kind, takes, artifact, call)
        yield from _ignored_scale(kind, takes, artifact, call)
        yield from _ignored_image_scale(kind, takes, artifact, call)
    steps = call.get(STEPS, (takes or {}).get(STEPS))
    yield from _scheduler_faults(kind, artifact, call, steps)
    for message in too_weak(artifact, call, takes or {}, steps):
        yield Fault(STRENGTH if STRENGTH in call else STEPS, message, "give a greater strength, or more steps")
    sized = artifact.calling(**call)
    yield from (Fault(side, message, fix) for side, message, fix in size_faults(sized))
    yield from _engine_faults(artifact, call, takes or {})


@cache
def call_arguments(kind: str) -> Mapping[str, object] | None:
    """The arguments of a pipeline's call, with their defaults; None of a class that is not known."""
    text = source_of(kind, "pipelines") if kind else ""
    tree = ast.parse(text) if text else None
    owner = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind), None) if tree else None
    functions = (n for n in owner.body if isinstance(n, ast.FunctionDef)) if owner else ()
    call = next((n for n in functions if n.name == "__call__"), None)
    if call is None:
        return None
    names, given = [a.arg for a in call.args.args[1:]], call.args.defaults
    defaults = [None] * (len(names) - len(given)) + [_constant(value) for value in given]
    return dict(zip(names, defaults, strict=True))


def _constant(value: ast.expr) -> object:
    return value.value if isinstance(value, ast.Constant) else None


def _untaken(kind: str, name: str) -> Fault:
    return Fault(name, f"{kind} takes no {name}", "leave it out")


def _ignored_prompt(
    kind: str, takes: Mapping[str, object], artifact: Artifact, call: Mapping[str, Any]
) -> Iterator[Fault]:
    """A negative prompt that would be ignored in silence: nothing steers away from it where guidance is off."""
    if not call.get(NEGATIVE) or NEGATIVE not in takes:
        return
    scale = TRUE_GUIDANCE if TRUE_GUIDANCE in takes else GUIDANCE
    given = call.get(scale, takes.get(scale))
    found = GUIDED.search(source_of(kind, "pipelines"))
    above = float(found["above"]) if found and scale == GUIDANCE else 1.0
    if scale in takes and isinstance(given, int | float) and given <= above:
        message = f"{kind} ignores a negative prompt unless {scale} is above {above:g}, and it is {given:g}"
        if scale in artifact.settings.call and folded_by(artifact):
            yield Fault(
                NEGATIVE, message, f"leave negative_prompt out, or teach it: `negative_prompt` of {folded_by(artifact)}"
            )
            return
        distilled = "leave negative_prompt out: this pipeline's guidance is distilled into the model"
        fix = distilled if scale == TRUE_GUIDANCE else f"leave negative_prompt out, or set guidance above {above:g}"
        yield Fault(NEGATIVE, message, fix)
    elif artifact.main and artifact.known_config(artifact.main).get("time_cond_proj_dim"):
        message = f"`{artifact.main}` takes its guidance as an input (time_cond_proj_dim) and ignores a negative prompt"
        yield Fault(NEGATIVE, message, "leave negative_prompt out")


def folded_by(artifact: Artifact) -> str:
    """The stage that taught a pipeline to do without its guidance; "" where none did."""
    return next((made.stage for made in reversed(artifact.lineage) if made.stage in FOLDING), "")


def _ignored_scale(
    kind: str, takes: Mapping[str, object], artifact: Artifact, call: Mapping[str, Any]
) -> Iterator[Fault]:
    """A scale that would be ignored in silence: the pipeline tells it to a denoiser which has no input for it."""
    if call.get(GUIDANCE) is None or GUIDANCE in artifact.settings.call or not artifact.main:
        return
    if _tells(kind) and not tells_guidance(artifact):
        message = f"{kind} ignores {GUIDANCE}: its `{artifact.main}` has no input for it (guidance_embeds)"
        truly = f"; it sets {TRUE_GUIDANCE} of a model whose own call has that (`settings.call` in {MANIFEST})"
        yield Fault(GUIDANCE, message, f"leave guidance out{truly if TRUE_GUIDANCE in takes else ''}")


def _ignored_image_scale(
    kind: str, takes: Mapping[str, object], artifact: Artifact, call: Mapping[str, Any]
) -> Iterator[Fault]:
    """A scale of the input image that would be ignored in silence: pipelines are led by the image where the text leads them too."""
    if call.get(IMAGE_GUIDANCE) is None or IMAGE_GUIDANCE not in takes:
        return
    if folded_by(artifact) or artifact.settings.call.get(IMAGE_GUIDANCE) == call[IMAGE_GUIDANCE]:
        return  # a student that was taught both is given neither, and what its own call has is its maker's
    given = call.get(GUIDANCE, takes.get(GUIDANCE))
    if isinstance(given, int | float) and given <= 1:
        message = f"{kind} ignores {IMAGE_GUIDANCE} unless {GUIDANCE} is above 1, and it is {given:g}"
        yield Fault(IMAGE_GUIDANCE, message, "leave image_guidance out, or set guidance above 1")


def tells_guidance(artifact: Artifact) -> bool:
    """Whether a denoiser is given the scale of its guidance as an input: as its config says, or by default its class."""
    message = artifact.known_config(artifact.main).get("guidance_embeds")
    if message is None and artifact.main in artifact.components and _tells(class_of(artifact.path)):
        return _embeds_guidance(artifact.components[artifact.main].kind)
    return bool(message)


def _tells(kind: str) -> bool:
    """Whether a pipeline tells its denoiser the scale of its guidance."""
    return bool(GIVEN_SCALE.search(source_of(kind, "pipelines"))) if kind else False


@cache
def _embeds_guidance(kind: str) -> bool:
    """Whether a denoiser of this class is reported the scale of its guidance, where its config does not say."""
    found = EMBEDS.search(source_of(kind, "models").partition(f"class {kind}(")[2]) if kind else None
    return found is not None and found["default"] == "True"


def _scheduler_faults(kind: str, artifact: Artifact, call: Mapping[str, Any], steps: object) -> Iterator[Fault]:
    """Why the scheduler, the model's own or a named one, cannot do what is asked for; what it never can is reported with the model."""
    config, name = config_of(artifact), call.get(SCHEDULER)
    if name and not config:
        yield Fault(
            SCHEDULER, "the pipeline has no scheduler of its own that another could take the place of", "leave it out"
        )
        return
    if name and (why := foreign(config, name)):
        yield Fault(SCHEDULER, why, why.fix)
        return
    always = {p.message for p in faults(config, "")}
    for found in faults(named_config(config, name), "", steps, kind):
        if found.message not in always:
            yield Fault(SCHEDULER if name else STEPS, found.message, found.fix)


def lost_settings(artifact: Artifact, call: Mapping[str, Any]) -> str:
    """Which settings of the model's own scheduler the one that is named in its place does not take, in words; "" where none."""
    config, name = config_of(artifact), call.get(SCHEDULER)
    changed = changes(config, name) if name else {}
    return reported(config, changed) if name and left_out(config, changed["_class_name"]) else ""


def _engine_faults(artifact: Artifact, call: Mapping[str, Any], takes: Mapping[str, object]) -> Iterator[Fault]:
    """Sizes that no engine of the pipeline was built for: each that sees an image is built for one, the size that the model is
    meant to generate."""
    seeing = [name for name in (artifact.main, "vae") if name in artifact.components]
    engines = [name for name in seeing if artifact.components[name].format != "torch"]
    built = {side: artifact.settings.call.get(side) or takes.get(side) or own_size(artifact) for side in SIDES}
    for side in SIDES if engines else ():
        asked = call.get(side)
        if asked is None or asked == built[side]:
            continue
        meant = f"of {side} {built[side]}" if built[side] else "of the pipeline's own size"
        message = f"{side} {asked} is asked for, and the engine of `{engines[0]}` is built for images {meant}"
        size = ", ".join(f"{one}: {call.get(one) or built[one]}" for one in SIDES if call.get(one) or built[one])
        yield Fault(side, message, f"put `- accelerate.size: {{{size}}}` in front of the stage that builds it")
