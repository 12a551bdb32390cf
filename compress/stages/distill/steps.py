"""Teach a denoiser to do in a few steps, and without guidance, what its teacher does in many with it.

Use it first where a pipeline is to be fast: 20 guided steps are 40 calls of the denoiser, and 2 of a student's are 2. A student
of `steps` starts as what stands in front of it in the recipe, and learns to land in one step where `substeps` steps of its
teacher lead; the teacher's guidance is taught as its own output, so that plain diffusers makes one pass a step. Rounds of half as
many steps each, every one taught by the round before, are the classic ladder; a last round taught by the guided original itself
mends what they lost. `method: consistency` teaches one student for several numbers of steps, sampled by LCMScheduler; it can
keep less of an image's variety, and is for pipelines whose scheduler goes by a schedule of betas (DDIM, PNDM, Euler, DPM-Solver++), not
along a flow (FLUX, SD3). The latents are the training data's images, encoded, or what the teacher generates. A student of a pipeline that is
given images is given them with each caption, begins as far up as `strength` says, and is not taught what lies outside a mask; InstructPix2Pix's
needs neither of its two guidances any more.
Source: Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models" (2022); Meng et al., "On Distillation of
Guided Diffusion Models" (2022); Luo et al., "Latent Consistency Models" (2023).

    - distill.steps: {steps: 4, guidance: 3.0}
    - distill.steps: {steps: 2, guidance: 3.0, substeps: 3, teacher: source}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field, model_validator

from compress.artifact import Artifact
from compress.catalogue import Forecast, Misfit, stage
from compress.context import Context
from compress.distillation.compatibility import trajectory_misfits
from compress.distillation.few_steps import (
    ORIGIN,
    SUBSTEPS,
    FewSteps,
    Method,
    forecast_sampled,
    images_read,
    last_level,
    refusal,
    sampler,
)
from compress.distillation.students import parts_of, too_fine, uneven
from compress.errors import Refusal
from compress.pipelines.schedulers import config_of

RATE, CONSISTENCY_RATE = 2e-4, 2e-5  # a student that is its own teacher drifts away at the first: reports/LOG.md


class DistillSteps(FewSteps):
    learning_rate: float = Field(
        RATE,
        gt=0,
        description=f"peak of the learning rate, which then falls to a twentieth; for consistency the default is {CONSISTENCY_RATE}",
    )
    steps: int = Field(ge=1, le=1000, description="denoising steps of the student")
    method: Method = Field(
        "progressive", description="landing where several steps of the teacher do, or agreeing with itself a step on"
    )
    substeps: int | None = Field(
        None, ge=1, le=64, description=f"steps of the teacher that one of the student covers; default: {SUBSTEPS}"
    )
    origin: int | None = Field(
        None,
        ge=2,
        le=1000,
        description=f"for consistency: levels of noise between which it agrees with itself; default: {ORIGIN}",
    )

    @model_validator(mode="before")
    @classmethod
    def _slower(cls, given: object) -> object:
        if isinstance(given, Mapping) and given.get("method") == "consistency":
            return {"learning_rate": CONSISTENCY_RATE, **given}
        return given


def refuse(artifact: Artifact, params: DistillSteps) -> str:
    if params.method == "consistency" and params.substeps is not None:
        return Refusal("consistency goes one step of its `origin` at a time", "leave `substeps` out")
    if params.method == "progressive" and params.origin is not None:
        return Refusal("`origin` is of method: consistency", "leave `origin` out, or set method: consistency")
    if params.method == "consistency" and params.steps > _origin(params):
        message = f"{params.steps} steps are more than the {_origin(params)} of `origin`"
        return Refusal(message, f"ask for {_origin(params)} steps or fewer, or for a larger `origin`")
    if why := refusal(artifact, params, params.steps, params.method, _origin(params)):
        return why
    if params.method == "consistency":
        return too_fine(artifact, _origin(params), "`origin`") or uneven(artifact, _origin(params))
    return too_fine(artifact, parts_of(params.model_dump()), "`steps` times `substeps`")


def forecast(artifact: Artifact, params: DistillSteps) -> Forecast:
    return forecast_sampled(artifact, params, params.steps, params.method, _origin(params))


def unfit(artifact: Artifact, params: DistillSteps, inputs: Mapping[str, Artifact]) -> Iterable[Misfit]:
    return trajectory_misfits(artifact, inputs["teacher"], params)


def _origin(params: DistillSteps) -> int:
    return params.origin or ORIGIN


@stage(
    version=2,
    params=DistillSteps,
    needs=("denoising", "trajectories"),
    formats={"torch": "torch"},
    effects=("weights", "settings"),
    carries=True,
    reproducible="bytes",
    bound_to=("isa",),
    data=lambda params: ("train",),
    images=images_read,
    inputs=("teacher",),
    libraries=("accelerate", "torch", "transformers", "diffusers"),
    refuse=refuse,
    forecast=forecast,
    unfit=unfit,
)
def run(artifact: Artifact, params: DistillSteps, context: Context) -> None:
    from compress.opening.schedulers import made
    from compress.training.trajectory_targets import agree, halve, leave_taught, teach_denoiser

    consistent, config = params.method == "consistency", config_of(artifact)
    steps, substeps = (_origin(params), 1) if consistent else (params.steps, params.substeps or SUBSTEPS)
    last = last_level(artifact, params.steps)
    student = teach_denoiser(
        artifact, params, context, steps, substeps, agree if consistent else halve, last, params.steps
    )
    samples = made(config, sampler(config, params.method, _origin(params), last), artifact.path)
    leave_taught(artifact, student, forecast(artifact, params).settings, context, samples)
