"""Pass parts of a denoiser over at steps at which they would give much what they gave at an earlier one.

Use it where images take many steps: neighbouring ones differ little, and most of a denoiser's work is done again. `deep` is for UNets: their inner
levels run at each `interval`-th step alone, the outer `levels` at all, on what the inner ones gave last. The others are for transformers of which
diffusers knows what their blocks give back: `first_block` runs the first block at each step and the others where it changed its stream by more
than `threshold` (of what it changed before); `taylorseer` foretells the last block's output by a Taylor series between steps at which all run;
`mag` adds again what the blocks added last, while the growth of what they add, which the stage looks at on calibration captions, says that it is
not off by more than `threshold`, for `skip` steps in a row at most. Images come out otherwise than without, so let metrics and gates say by how
much, and let fewer steps without a cache be a control: it is the plainer way to save as much. A report tells the parts that were passed over.
Nothing of an image stays for the next, and an image in a batch is what it is alone. The model's files stay as they are; stock pipelines run
all blocks at each step. Put it behind all that changes the denoiser. Code compiled of a transformer's blocks, CUDA graphs, engines, the lean call
and a student of few steps do not go with it.
Source: Ma et al., "DeepCache" (2023); Liu et al., "From Reusing to Forecasting: TaylorSeers" (2025); Ma et al., "MagCache" (2025); First Block
Cache of ParaAttention, after Liu et al., "TeaCache" (2024).

    - accelerate.step_cache: {}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from compress.artifact import Artifact
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.distillation.students import student_of
from compress.errors import Refusal, StageFailed
from compress.model.hook_settings import STEP_CACHE, unhookable, unhooked
from compress.model.step_caches import DEEP, LEVELLED, Method, uncacheable
from compress.params import Params, unused_faults
from compress.pipelines.call_arguments import STEPS, call_arguments
from compress.pipelines.index import class_of
from compress.stages.accelerate import forecast_hooked, leave_hooked

FEW = 4  # steps: of a student that was taught them, each is a way of its own
# By field, the methods that use it; the fields are what is written down for the model's opening.
USED: Mapping[str, tuple[Method, ...]] = {
    "interval": ("deep", "taylorseer"),
    "levels": ("deep",),
    "threshold": ("first_block", "mag"),
    "warmup": ("taylorseer",),
    "order": ("taylorseer",),
    "skip": ("mag",),
    "retain": ("mag",),
    "captions": ("mag",),
}
WORK = ("captions",)  # what the stage needs, and no opening


class StepCache(Params):
    method: Method | None = Field(
        None,
        description="how it is decided what is passed over; default: deep for a UNet, first_block for a transformer",
    )
    interval: int = Field(
        3, ge=1, le=100, description="steps from one at which all runs to the next one; 1 reuses nothing"
    )
    levels: int = Field(1, ge=1, description="the outermost levels of a UNet, which run at each step")
    threshold: float = Field(
        0.08,
        ge=0,
        le=10,
        description="by how much the first block's change may differ from the one before it, as a share, or for mag the error that adds up; "
        "0 reuses nothing",
    )
    warmup: int = Field(3, ge=1, description="steps at the beginning at which all blocks run")
    order: int = Field(1, ge=0, le=4, description="of the Taylor series; 0 takes what was given last")
    skip: int = Field(3, ge=1, description="most steps in a row that reuse")
    retain: float = Field(0.2, ge=0, lt=1, description="share of the steps, at the beginning, at which all blocks run")
    captions: int = Field(4, ge=1, description="calibration captions that are generated to look at, at most")


def refuse(artifact: Artifact, params: StepCache) -> str:
    asked = settled(artifact, params)
    if why := unhookable(artifact, STEP_CACHE, method=asked.method):
        return why
    if found := unused_faults(asked, "method", USED):
        return Refusal(found[0].message, found[0].fix)
    if why := uncacheable(artifact, asked.method or DEEP, params.levels):
        return why
    student = student_of(artifact)
    if student and student.steps <= FEW:
        return Refusal(
            f"{student.reported()}, each far from the others: there is nothing to reuse", "leave this stage out"
        )
    if params.interval == 1 and asked.method in USED["interval"]:
        return Refusal("interval: 1 reuses nothing", "give at least 2, or leave this stage out")
    if params.threshold == 0 and asked.method in USED["threshold"]:
        return Refusal("threshold: 0 reuses nothing", "give more than 0, or leave this stage out")
    steps = steps_of(artifact)
    return Refusal("images take one step, and there is none to reuse", "leave this stage out") if steps == 1 else ""


def settled(artifact: Artifact, params: StepCache) -> StepCache:
    """The parameters with a method, where they leave it to the model."""
    levelled = artifact.components[artifact.main].kind == LEVELLED
    return params.model_copy(update={"method": params.method or (DEEP if levelled else "first_block")})


def steps_of(artifact: Artifact) -> int | None:
    """In how many steps a pipeline generates, by its own call or by default; None where nobody says."""
    steps = artifact.settings.call.get(STEPS, (call_arguments(class_of(artifact.path)) or {}).get(STEPS))
    return steps if isinstance(steps, int) else None


def way(params: StepCache) -> dict[str, Any]:
    """What is written down, all but what is found by looking."""
    fields = (name for name, methods in USED.items() if params.method in methods and name not in WORK)
    return {"method": params.method} | {name: getattr(params, name) for name in fields}


def reported(params: StepCache) -> str:
    if params.method == DEEP:
        return f"levels within the outermost {params.levels} run once in {params.interval} steps, and are reused at the others"
    if params.method == "taylorseer":
        return f"blocks run at the first {params.warmup} steps and once in {params.interval} behind them, and are foretold at the others"
    if params.method == "mag":
        return f"what blocks add is reused for at most {params.skip} steps in a row, while the error that adds up is below {params.threshold:g}"
    return f"blocks behind the first one are reused where that one's change differs by less than {params.threshold:g}"


def forecast(artifact: Artifact, params: StepCache) -> Forecast:
    asked = settled(artifact, params)
    return forecast_hooked(artifact, STEP_CACHE, reported(asked), **way(asked))


@stage(
    version=1,
    params=StepCache,
    needs=("denoising",),
    lossy=True,
    formats={"torch": "torch"},
    effects=("settings",),
    reproducible="bytes",
    bound_to=("isa",),  # of mag, what is looked at are rounded numbers
    libraries=("diffusers",),
    data=lambda params: ("calibration",) if params.method == "mag" else (),
    refuse=refuse,
    forecast=forecast,
)
def run(artifact: Artifact, params: StepCache, context: Context) -> None:
    found = way(settled(artifact, params))
    if params.method == "mag":
        found["ratios"] = _growth(artifact, params.captions, context)
        context.note("how many times as much the blocks add, by step, as at the step before", ratios=found["ratios"])
    leave_hooked(artifact, STEP_CACHE, context, **found)


def _growth(artifact: Artifact, captions: int, context: Context) -> list[float]:
    """By step of the model's own call, how many times as much its blocks add as at the step before, as MagCache takes it: the mean over
    calibration captions, their tokens and passes of guidance."""
    from compress.opening import open_images
    from compress.opening.denoising import tell_steps
    from compress.opening.reused import Looking
    from compress.opening.step_caches import Blocks

    opened = open_images(unhooked(artifact), context.opening)
    module, looking = opened.component(artifact.main), Looking()
    denoising = tell_steps(opened.stock, module)
    denoising.cache = Blocks(module, looking, denoising.counted)
    items = context.data["calibration"].first(captions)
    for item in context.progress(items, "looking at captions", len(items)):
        opened.images([item], context.seed)
    ratios = [round(math.fsum(found) / len(found), 6) for _, found in sorted(looking.ratios.items())]
    if not all(map(math.isfinite, ratios)):
        raise StageFailed(
            "what blocks add is no number at some step",
            place=str(artifact.folder(artifact.main)),
            fix="the model is broken: look at the last stage, or use a higher precision",
        )
    return ratios
