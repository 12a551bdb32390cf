"""Generate images of a stated size, in every stage that follows and in the call that the model is left with.

Put it in front of a stage that builds engines: each is built for one size, the model's own unless this one says another. Fewer pixels
are also the plainest way to a faster model; give the baseline the same `height` and `width` (evaluate.baseline) to compare like with
like. A size far from the one that a model was trained on generates worse.
Source: how pipelines of diffusers take `height` and `width`.

    - accelerate.size: {height: 512, width: 512}
"""

from __future__ import annotations

from pydantic import Field

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast
from compress.context import Context
from compress.errors import Refusal
from compress.params import Params
from compress.pipelines.call_arguments import call_arguments, call_faults
from compress.pipelines.image_sizes import BINNED, exactly, resized
from compress.pipelines.index import class_of
from compress.stages.accelerate import call_stage

WASTED = (
    f"its pipeline generates the nearest size that it was trained on and resizes that, so that fewer pixels save no time: write "
    f'"{BINNED}": false among the arguments of the model\'s call, in its pare.json, to generate fewer pixels'
)


class Size(Params):
    height: int = Field(ge=1, description="pixels of each image, from top to bottom")
    width: int = Field(ge=1, description="pixels of each image, from side to side")


def refuse(artifact: Artifact, params: Size) -> str:
    """Also where an engine is there already, which was built for another size."""
    asked = {"height": params.height, "width": params.width}
    found = call_faults(artifact, {**artifact.settings.call, **asked})
    return next((Refusal(fault.message, fault.fix) for fault in found if fault.argument in asked), "")


def sized(artifact: Artifact, params: Size) -> Artifact:
    """The artifact with a call that generates this size."""
    takes = call_arguments(class_of(artifact.path)) or {}
    return artifact.calling(height=params.height, width=params.width, **exactly(takes, params.height, params.width))


def forecast(artifact: Artifact, params: Size) -> Forecast:
    made = sized(artifact, params)
    warnings = (WASTED,) if resized(artifact, params.height, params.width) else ()
    return Forecast(
        settings=made.settings, reported=f"images {params.width} wide and {params.height} high", warnings=warnings
    )


@call_stage(version=1, params=Size, lossy=True, refuse=refuse, forecast=forecast)
def run(artifact: Artifact, params: Size, context: Context) -> None:
    made = derive(artifact, context.out, link=context.link)
    context.note(f"images {params.width} wide and {params.height} high")
    write_manifest(sized(made, params))
