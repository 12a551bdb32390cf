"""Build OpenVINO engines of a model's components, each compared with torch on real inputs before it is kept.

Use it after everything that changes torch weights: an engine is fast and cannot be trained or pruned any more. The result
takes any batch size, and images of the size the pipeline was built at. A VAE's engine is its decoder: text-to-image needs
no encoder; a pipeline that is given images gets one for its encoder, too, which `quantize.nncf` leaves as it is. `bfloat16` is a compile hint, fast where the processor has the instructions; the stored weights stay as they are.
In fewer bits the graph is quantized by NNCF as `quantize.nncf` does it, which has more to set. Source: OpenVINO, and the
exporter of transformers (`transformers.exporters`).

    - build.openvino: {precision: bfloat16}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from compress.artifact import Artifact
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.engines.openvino import ENGINE
from compress.model.bit_widths import packing
from compress.model.exportable import Components, refuse_engine, wanted
from compress.params import Params, one_of
from compress.planning.resources import opened_bytes
from compress.quantization.sizes import held_bytes, stored_bytes

if TYPE_CHECKING:
    Precision = str
else:
    Precision = one_of(ENGINE.precisions)


class BuildOpenVINO(Params):
    precision: Precision = Field(
        "float32",
        description="what the engine computes in; int8: weights and activations of 8 bits, calibrated at real timesteps",
    )
    components: Components = Field(
        "all", description="what to build; all: denoiser, VAE decoder and text encoders, or the language model"
    )
    samples: int = Field(64, ge=1, le=2000, description="calls to each component that int8 is calibrated on")


def refuse(artifact: Artifact, params: BuildOpenVINO) -> str:
    return refuse_engine(artifact, params.components, "openvino")


def forecast(artifact: Artifact, params: BuildOpenVINO) -> Forecast:
    names = wanted(artifact, params.components)
    packed = packing(names, ENGINE.format, params.precision)
    made = artifact.replacing(dict.fromkeys(names, ENGINE.format)).packing(packed)
    # As it is stored while it is converted, in float32 when it is compared, and the engine beside it.
    whole = sum(stored_bytes(artifact, name) for name in artifact.components) + opened_bytes(artifact)
    return Forecast(quantization=packed, memory_bytes=whole + sum(held_bytes(made, name) for name in names))


@stage(
    version=7,
    params=BuildOpenVINO,
    formats={"torch": "openvino"},
    effects=("format",),
    reproducible="bytes",
    bound_to=("isa",),  # in int8, weights use half their range where products of bytes overflow
    libraries=("openvino", "nncf", "transformers", "torch", "diffusers"),
    refuse=refuse,
    forecast=forecast,
    data=lambda params: ("calibration",) if params.precision == "int8" else (),
)
def run(artifact: Artifact, params: BuildOpenVINO, context: Context) -> None:
    from compress.building.build import build_engines
    from compress.engines.openvino.build import OpenVINOBuilder

    samples = params.samples if params.precision == "int8" else 0
    names = wanted(artifact, params.components)
    build_engines(artifact, names, OpenVINOBuilder(params.precision), context, samples)
