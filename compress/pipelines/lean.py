"""Where a pipeline of images has a lean call: a loop that generates the stock pipeline's very images without most of its Python.

A stock call asks each module for its device and its hooks, reads signatures, makes its schedule anew, tokenizes twice and draws a progress
bar: some milliseconds, which two steps behind an engine feel. Read from JSON and the class's source; `opening/lean.py` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.artifact import SCHEDULER, Artifact
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.image_inputs import IMAGE_GUIDANCE, STRENGTH
from compress.pipelines.image_sizes import SIDES
from compress.pipelines.index import class_of
from compress.pipelines.schedulers import config_of, named_config
from compress.tasks import Fault

# By the pipeline's class, the scheduler whose steps its lean call takes, and what is an argument of it beside the usual ones.
SCHEDULERS: Mapping[str, str] = {
    "StableDiffusionPipeline": "DDIMScheduler",
    "StableDiffusionImg2ImgPipeline": "DDIMScheduler",
    "StableDiffusionInpaintPipeline": "DDIMScheduler",
    "StableDiffusionInstructPix2PixPipeline": "DDIMScheduler",
    "StableDiffusionXLPipeline": "DDIMScheduler",
    "StableDiffusion3Pipeline": "FlowMatchEulerDiscreteScheduler",
    "FluxPipeline": "FlowMatchEulerDiscreteScheduler",
}
USUAL = frozenset(
    {
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
        "negative_prompt",
        "generator",
        "output_type",
        "return_dict",
    }
)
MORE: Mapping[str, frozenset[str]] = {
    "StableDiffusion3Pipeline": frozenset({"max_sequence_length"}),
    "FluxPipeline": frozenset({"max_sequence_length"}),
    "StableDiffusionImg2ImgPipeline": frozenset({"image", STRENGTH}),
    "StableDiffusionInpaintPipeline": frozenset({"image", "mask_image", STRENGTH}),
    "StableDiffusionInstructPix2PixPipeline": frozenset({"image", IMAGE_GUIDANCE}),
}
# Settings under which a scheduler's steps are others than those that are walked here.
UNUSUAL = ("thresholding", "stochastic_sampling", "invert_sigmas", "use_flow_sigmas")
FIX = "leave the lean call out (the stage accelerate.call, or lean=True): the stock call generates it"
PLAIN = (bool, int, float, str, type(None))


def takes(kind: str) -> frozenset[str]:
    """The arguments, behind the prompt, of a pipeline class's lean call."""
    return (USUAL | MORE.get(kind, frozenset())) & set(call_arguments(kind) or ())


def no_lean_call(kind: str, scheduler: str, config: Mapping[str, Any]) -> str:
    """Why a pipeline of this class has no lean call with a scheduler of this class and config, or ""."""
    if kind not in SCHEDULERS:
        return f"there is a lean call for {', '.join(sorted(SCHEDULERS))}, and this is a {kind or 'pipeline without a class'}"
    walked = SCHEDULERS[kind]
    if scheduler != walked:
        return f"the lean call of {kind} walks the steps of {walked}, and its scheduler is {scheduler or 'none'}"
    if set_ := [name for name in UNUSUAL if config.get(name)]:
        return f"the lean call of {kind} does not know {walked} with {', '.join(set_)}"
    return ""


def without_lean_call(artifact: Artifact, call: Mapping[str, Any]) -> str:
    """Why an artifact that is called so has no lean call, or "": its class, its scheduler or the one that is named in its place, and
    a denoiser that takes its guidance as an input."""
    kind = class_of(artifact.path)
    config = named_config(config_of(artifact), call.get(SCHEDULER))
    if why := no_lean_call(kind, str(config.get("_class_name", "")), config):
        return why
    reported = artifact.main and artifact.known_config(artifact.main).get("time_cond_proj_dim")
    return f"`{artifact.main}` takes its guidance as an input (time_cond_proj_dim)" if reported else ""


def lean_faults(artifact: Artifact, call: Mapping[str, Any]) -> Iterator[Fault]:
    """Why a model that is meant to be called the lean way cannot be called so with these arguments, its own among them."""
    if not artifact.settings.lean:
        return
    if why := without_lean_call(artifact, call):
        yield Fault(SCHEDULER, why, FIX)
        return
    kind = class_of(artifact.path)
    stock = call_arguments(kind) or {}
    beside = {SCHEDULER, *(side for side in SIDES if side not in stock)}  # what such a pipeline is given has the size
    for name in unusual(kind, {name: value for name, value in call.items() if name not in beside}, stock):
        yield Fault(name, f"the lean call of {kind} takes no {name}", f"leave it out, or {FIX}")


def unusual(kind: str, given: Mapping[str, Any], defaults: Mapping[str, object]) -> tuple[str, ...]:
    """The arguments of a call that only the stock call takes; one that is given as it is by default does not count."""
    others = (name for name in given if name not in takes(kind))
    return tuple(n for n in others if n not in defaults or not _is_default(given[n], defaults[n]))


def _is_default(value: object, default: object) -> bool:
    return value is default or (isinstance(value, PLAIN) and isinstance(default, PLAIN) and value == default)
