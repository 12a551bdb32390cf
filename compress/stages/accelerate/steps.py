"""Paint in fewer denoising steps, if need be with a scheduler that makes more of each.

Use it first: it costs no training, multiplies with every other saving, and is the control that any cleverer method must beat.
Source: the schedulers of diffusers; Song et al., "Denoising Diffusion Implicit Models" (2020); Lu et al., "DPM-Solver++" (2022);
Zhao et al., "UniPC" (2023).

    - accelerate.steps: {steps: 8, scheduler: dpm-solver++}
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compress.artifact import Artifact, derive, read_json, write_manifest
from compress.catalogue import stage
from compress.context import Context
from compress.errors import StageFailed
from compress.params import Params

if TYPE_CHECKING:
    import diffusers

CONFIG = "scheduler/scheduler_config.json"
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# The schedulers that take what a model may predict beside noise and velocity, which all of them take.
TAKERS = {
    "flow_prediction": ("dpm-solver++", "unipc"),
    "sample": ("ddim", "ddpm", "dpm-solver++", "euler", "lcm", "unipc"),
}
Scheduler = Literal["ddim", "ddpm", "dpm-solver++", "euler", "euler-ancestral", "heun", "lcm", "pndm", "unipc"]


class Steps(Params):
    steps: int = Field(ge=1, le=1000, description="denoising steps of each picture")
    scheduler: Scheduler | None = Field(None, description="the scheduler to use instead of the model's own")
    spacing: Literal["leading", "linspace", "trailing"] | None = Field(
        None,
        description="how the steps lie on the training schedule; trailing starts from pure noise, which few steps need",
    )


def refuse(artifact: Artifact, params: Steps) -> str:
    if not (artifact.path / CONFIG).is_file():
        return ""  # of an artifact still to be made there is nothing to read
    config = read_json(artifact.path / CONFIG)
    kind, predicts = str(config.get("_class_name", "")), str(config.get("prediction_type", "epsilon"))
    if params.scheduler and (kind.startswith("Flow") or predicts == "trigflow"):
        return f"{kind} integrates a flow, and `{params.scheduler}` samples a diffusion: leave `scheduler` out"
    takers = TAKERS.get(predicts, (params.scheduler,))
    if params.scheduler and params.scheduler not in takers:
        which = ", ".join(f"`{name}`" for name in takers)
        return f"`{params.scheduler}` takes no {predicts}: choose one of {which}, or leave `scheduler` out"
    if params.spacing and kind.startswith("Flow"):
        return f"{kind} spaces its steps itself: leave `spacing` out"
    return ""


@stage(
    version=1,
    params=Steps,
    needs=("denoising",),
    effects=("settings",),
    reproducible="bytes",
    libraries=("diffusers",),
    refuse=refuse,
)
def run(artifact: Artifact, params: Steps, context: Context) -> None:
    made = derive(artifact, context.out, without=(CONFIG,), link=context.link)
    _write_scheduler(artifact, params, context)
    write_manifest(made.calling(num_inference_steps=params.steps))


def _write_scheduler(artifact: Artifact, params: Steps, context: Context) -> None:
    """Let diffusers carry the training schedule over from the old scheduler's config to the new one's."""
    import diffusers

    from compress.engines.torch.runtime import silent_libraries

    config = json.loads((artifact.path / CONFIG).read_text())
    kind = SCHEDULERS[params.scheduler] if params.scheduler else config["_class_name"]
    changes = {"timestep_spacing": params.spacing} if params.spacing else {}
    with silent_libraries():
        scheduler = getattr(diffusers, kind).from_config(config, **changes)
        _try_steps(scheduler, params)
        scheduler.save_pretrained(context.out / "scheduler")
    _name_class(context, kind)


def _try_steps(scheduler: diffusers.SchedulerMixin, params: Steps) -> None:
    """Fail here, not at the first picture, where the scheduler cannot do that many steps, or would ignore the spacing."""
    kind = type(scheduler).__name__
    if params.spacing and "timestep_spacing" not in scheduler.config:
        raise StageFailed(f"{kind} spaces its steps itself", fix="leave `spacing` out, or name a `scheduler`")
    # FLUX shifts its schedule by the picture's size, which the pipeline tells at each call; any size will do here.
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(params.steps, **shift)
    except ValueError as error:
        raise StageFailed(
            f"{kind} cannot do {params.steps} steps: {error}", fix="ask for fewer steps, or name another `scheduler`"
        ) from error


def _name_class(context: Context, kind: str) -> None:
    """Say in model_index.json which scheduler there is now: a link to the input's file must not be written through."""
    path = context.out / "model_index.json"
    index = json.loads(path.read_text())
    index["scheduler"] = ["diffusers", kind]
    path.unlink()
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
