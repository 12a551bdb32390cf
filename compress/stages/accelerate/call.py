"""Generate through the lean call: the stock pipeline's very images, without most of the Python around its components.

A stock call of diffusers takes some milliseconds beside its components: it looks for hooks and devices in every module, makes its schedule
anew, tokenizes each prompt twice. That is a large share of an image once a student generates it in two steps behind an engine, and nothing of
one that takes a second. The model's files stay as they are; with another caller than pare it is the stock pipeline. Put it last.
It is there for StableDiffusionPipeline, its image to image, inpainting and InstructPix2Pix, and StableDiffusionXLPipeline with DDIMScheduler, and
for StableDiffusion3Pipeline and FluxPipeline with FlowMatchEulerDiscreteScheduler; `accelerate.steps` in front can give the former their DDIM, and
so does `distill.steps` (progressive).
Source: the calls of diffusers' pipelines, whose arithmetic the lean call repeats operation by operation.

    - accelerate.call: {}
"""

from __future__ import annotations

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast
from compress.context import Context
from compress.distillation.students import student_of
from compress.errors import Refusal
from compress.model.hook_settings import APART, BY_STEP, OFFLOAD, offloaded
from compress.params import Params
from compress.pipelines.call_arguments import STEPS, call_arguments
from compress.pipelines.index import class_of
from compress.pipelines.lean import SCHEDULERS, no_lean_call, without_lean_call
from compress.pipelines.schedulers import NAMED, changes, config_of, foreign
from compress.stages.accelerate import call_stage

SUMMARY = "call path: stock → lean; the images are the same, and calling it so needs pare"
LEAVE = "leave this stage out: the stock call generates it"


class Call(Params):
    """It has no parameters."""


def refuse(artifact: Artifact, params: Call) -> str:
    if artifact.settings.lean:
        return Refusal("the model is called the lean way already", "leave this stage out")
    if offloaded(artifact):
        return Refusal(f"the lean call wants components that stay where they are, and {OFFLOAD} moves them", APART)
    if hooks := [one.name for one in artifact.settings.hook if one.name in BY_STEP]:
        return Refusal(
            f"the lean call goes through its steps by itself, and {hooks[0]} has to know which it is at", APART
        )
    why = without_lean_call(artifact, artifact.settings.call)
    return Refusal(why, _remedy(artifact)) if why else ""


def _remedy(artifact: Artifact) -> str:
    """What would give a pipeline a lean call: the scheduler whose steps it walks, where that samples what the model predicts."""
    config, walked = config_of(artifact), SCHEDULERS.get(class_of(artifact.path), "")
    name = next((name for name, kind in NAMED.items() if kind == walked), None)
    if not config or config.get("_class_name") == walked or name is None or foreign(config, name):
        return LEAVE
    student = student_of(artifact)
    if student and student.method == "consistency":
        return f"{LEAVE}, or teach with method: progressive, whose students {walked} samples"
    kind = class_of(artifact.path)
    if no_lean_call(kind, walked, {**config, **changes(config, name)}):
        return LEAVE
    steps = artifact.settings.call.get(STEPS) or (call_arguments(kind) or {}).get(STEPS) or "…"
    return f"put `- accelerate.steps: {{steps: {steps}, scheduler: {name}}}` in front, or {LEAVE}"


def forecast(artifact: Artifact, params: Call) -> Forecast:
    return Forecast(settings=artifact.calling_lean().settings, reported=SUMMARY)


@call_stage(version=1, params=Call, lossy=False, refuse=refuse, forecast=forecast)
def run(artifact: Artifact, params: Call, context: Context) -> None:
    made = derive(artifact, context.out, link=context.link)
    context.note(SUMMARY)
    write_manifest(made.calling_lean())
