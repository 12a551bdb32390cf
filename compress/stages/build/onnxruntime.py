"""Build ONNX Runtime engines of a model's components, each compared with torch on real inputs before it is kept.

Use it where ONNX Runtime is what serves the model, and after everything that changes torch weights. Operators are fused into
ones that only ONNX Runtime knows: `export.onnx` keeps to the standard's. The result takes any batch size, and images of the
size the pipeline was built at; a VAE's engine is its decoder. `int8` is for images: its ranges are calibrated at real
timesteps. `int8_dynamic` is for language models: ranges are taken at each call, and long prompts are read faster. Of the
weights alone, `int8_weights` and `int4_weights` keep matrices in blocks of 32 and all others in 8 bits, and multiply in integers.
With `device: cuda` it is built for ONNX Runtime's CUDA provider, in float32 or `float16`, where onnxruntime-gpu is installed. On a
processor float16 was slower than float32 (21 ms instead of 14 ms for a small denoiser), and for bfloat16 it has no matrix product. Source: ONNX Runtime, and the exporter of transformers (`transformers.exporters`).

    - build.onnxruntime: {}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compress.artifact import Artifact
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.engines.onnx import ENGINE, ON_GPUS
from compress.errors import Refusal
from compress.machine.devices import kind_of
from compress.model.bit_widths import packing
from compress.model.exportable import Components, refuse_engine, wanted
from compress.params import Params, one_of

if TYPE_CHECKING:
    Precision = str
else:
    Precision = one_of(ENGINE.precisions)


class BuildOnnxRuntime(Params):
    precision: Precision = Field(
        "float32",
        description="what the engine computes in; float16: on a GPU; int8: weights and activations of 8 bits, of images, calibrated; int8_dynamic: "
        "the same of a language model, without calibration",
    )
    components: Components = Field(
        "all", description="what to build; all: denoiser, VAE decoder and text encoders, or the language model"
    )
    samples: int = Field(64, ge=1, le=2000, description="calls to each component that int8 is calibrated on")


def refuse(artifact: Artifact, params: BuildOnnxRuntime) -> str:
    text = artifact.writes_text
    if params.precision == "int8" and text:
        return "a language model's activations get their ranges at each call here: set precision to int8_dynamic"
    if params.precision == "int8_dynamic" and not text:
        return "convolutions whose ranges are taken at each call run slower than in float32: set precision to int8"
    return refuse_engine(artifact, params.components, "onnx")


def forecast(artifact: Artifact, params: BuildOnnxRuntime) -> Forecast:
    names = wanted(artifact, params.components)
    return Forecast(quantization=packing(names, ENGINE.format, params.precision))


def misplaced(artifact: Artifact, params: BuildOnnxRuntime, device: str) -> str:
    on_gpu = kind_of(device) == "cuda"
    if on_gpu and params.precision not in ON_GPUS:
        why = f"{params.precision} is for processors here, and the device is {device}"
        return Refusal(why, f"set precision to {' or '.join(ON_GPUS)}, or leave this stage out")
    if not on_gpu and params.precision == "float16":
        return Refusal(
            "float16 is for GPUs here: on a processor it was slower than float32", "set precision to float32"
        )
    return ""


@stage(
    version=5,
    params=BuildOnnxRuntime,
    formats={"torch": "onnx"},
    effects=("format",),
    reproducible="bytes",
    libraries=("onnxruntime", "onnx", "onnxscript", "transformers", "torch", "diffusers"),
    extra="onnx",
    refuse=refuse,
    forecast=forecast,
    misplaced=misplaced,
    kernels=lambda params: params.precision if params.precision in ON_GPUS else "",
    data=lambda params: ("calibration",) if params.precision == "int8" else (),
)
def run(artifact: Artifact, params: BuildOnnxRuntime, context: Context) -> None:
    from compress.building.build import build_engines
    from compress.engines.onnx.build import OnnxBuilder

    samples = params.samples if params.precision == "int8" else 0
    names = wanted(artifact, params.components)
    fusions: Literal["cpu", "cuda"] = "cuda" if kind_of(context.opening.device) == "cuda" else "cpu"
    build_engines(artifact, names, OnnxBuilder(params.precision, context.opening, fusions=fusions), context, samples)
