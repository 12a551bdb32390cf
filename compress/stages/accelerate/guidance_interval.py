"""Guide within some of the steps alone; at the others the denoiser is asked with the prompt only, which is half the work or less.

Guidance shapes an image where it takes form; at the noisiest steps it narrows what comes out, and at the last ones it changes little. Outside
`start` to `stop`, both shares of the steps, the half of a batch without a prompt is not computed, or the pass without one is left out, and of
InstructPix2Pix's thirds that with the prompt and the image alone is computed; the pipeline's own loop runs as ever. Images come out otherwise
than with guidance at all steps, not always worse: let metrics say. The model's files stay as they are; stock pipelines guide at each step. It
goes with compiled blocks, CUDA graphs and `accelerate.step_cache`, which begins anew where guidance sets in or ends, and so reuses less with a
`start` above 0. A pipeline that asks for both in a way that is not known here, or is called without guidance, is refused, and so is the lean call.
Source: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models" (2024).

    - accelerate.guidance_interval: {start: 0.0, stop: 0.6}
"""

from __future__ import annotations

from pydantic import Field

from compress.artifact import Artifact
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import Refusal
from compress.model.hook_settings import INTERVAL, unhookable
from compress.params import Params
from compress.pipelines.guided_calls import asked_how, unguided
from compress.pipelines.index import class_of
from compress.stages.accelerate import forecast_hooked, leave_hooked

LEAVE = "leave this stage out"


class GuidanceInterval(Params):
    start: float = Field(0.0, ge=0, lt=1, description="share of the steps, at the beginning, that are not guided")
    stop: float = Field(0.6, gt=0, le=1, description="share of the steps behind which none is guided")


def refuse(artifact: Artifact, params: GuidanceInterval) -> str:
    if why := unhookable(artifact, INTERVAL):
        return why
    if params.start >= params.stop:
        why = f"start: {params.start:g} is not before stop: {params.stop:g}, so that no step would be guided"
        return Refusal(why, "give a `stop` above `start`")
    kind = class_of(artifact.path)
    if not asked_how(kind):
        return Refusal(f"how {kind} asks its denoiser without a prompt is not known here", LEAVE)
    if why := unguided(artifact):
        return Refusal(why, LEAVE)
    if params.start == 0 and params.stop == 1:
        return Refusal("that is each step, as without this stage", f"give a `stop` below 1, or {LEAVE}")
    return ""


def forecast(artifact: Artifact, params: GuidanceInterval) -> Forecast:
    how = asked_how(class_of(artifact.path))
    whole = "prompt and image" if how == "thirds" else "the prompt alone"
    reported = f"guided from {params.start:.0%} to {params.stop:.0%} of the steps, and asked with {whole} at the others"
    return forecast_hooked(artifact, INTERVAL, reported, start=params.start, stop=params.stop, how=how)


@stage(
    version=1,
    params=GuidanceInterval,
    needs=("denoising",),
    lossy=True,
    formats={"torch": "torch"},
    effects=("settings",),
    reproducible="bytes",
    libraries=("diffusers",),
    refuse=refuse,
    forecast=forecast,
)
def run(artifact: Artifact, params: GuidanceInterval, context: Context) -> None:
    how = asked_how(class_of(artifact.path))
    leave_hooked(artifact, INTERVAL, context, start=params.start, stop=params.stop, how=how)
