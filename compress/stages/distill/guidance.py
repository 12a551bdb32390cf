"""Teach a denoiser to say in one pass what guidance makes of two: half the work of every step, at as many steps as before.

Use it where steps are to stay, or where `distill.steps` cannot go. At any level of noise the student without guidance is held to
what its teacher says with it. The pipeline's scheduler stays, and may be changed; the scale is fixed, as is the negative prompt.
Source: Meng et al., "On Distillation of Guided Diffusion Models" (2022), their first stage with one scale.

    - distill.guidance: {guidance: 3.0}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compress.artifact import Artifact
from compress.catalogue import Forecast, Misfit, stage
from compress.context import Context
from compress.distillation.compatibility import trajectory_misfits
from compress.distillation.few_steps import FewSteps, forecast_taught, guiding, images_read, refusal
from compress.distillation.students import levels_of
from compress.errors import Refusal
from compress.pipelines.index import class_of

LEVELS = 1000  # of noise, at which it is taught, where the training schedule has as many

LEAVE = "leave this stage out"


class DistillGuidance(FewSteps):
    pass


def refuse(artifact: Artifact, params: DistillGuidance) -> str:
    how = guiding(artifact)
    if not how.folds:
        return Refusal(f"{class_of(artifact.path)} makes one pass a step already: nothing is saved", LEAVE)
    if (
        (own := how.scale) is not None
        and own <= 1
        and (params.guidance is None or how.argument in artifact.settings.call)
    ):
        why = f"the model is called without guidance ({how.argument} {own:g}) already: nothing is left to fold in"
        return Refusal(why, LEAVE)
    if params.guidance is not None and params.guidance <= 1:
        why = f"guidance {params.guidance:g} is none: there is nothing to teach"
        return Refusal(why, "give the scale that the model is used with, or leave this stage out")
    return refusal(artifact, params, None, "progressive")


def forecast(artifact: Artifact, params: DistillGuidance) -> Forecast:
    return forecast_taught(artifact, params)


def unfit(artifact: Artifact, params: DistillGuidance, inputs: Mapping[str, Artifact]) -> Iterable[Misfit]:
    return trajectory_misfits(artifact, inputs["teacher"], params)


@stage(
    version=2,
    params=DistillGuidance,
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
def run(artifact: Artifact, params: DistillGuidance, context: Context) -> None:
    from compress.training.trajectory_targets import imitate, leave_taught, teach_denoiser

    student = teach_denoiser(artifact, params, context, min(LEVELS, levels_of(artifact) or LEVELS), 1, imitate)
    leave_taught(artifact, student, forecast(artifact, params).settings, context)
