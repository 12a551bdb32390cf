"""Export a model's components to ONNX, in standard operators alone, each compared with torch on real inputs before it is kept.

Use it to carry a model to another runtime: the files hold nothing that only one of them knows. To run it here, on a CPU,
`build.onnxruntime` is faster, for it fuses operators into ONNX Runtime's own. The result takes any batch size, and images of
the size the pipeline was exported at; a language model's graph takes its KV cache as inputs and gives it back. A VAE's graph is
its decoder. Source: the ONNX standard, and the exporter of transformers (`transformers.exporters`).

    - export.onnx: {}
"""

from __future__ import annotations

from pydantic import Field

from compress.artifact import Artifact
from compress.catalogue import stage
from compress.context import Context
from compress.model.exportable import Components, refuse_engine, wanted
from compress.params import Params


class ExportOnnx(Params):
    opset: int | None = Field(
        None, ge=18, le=24, description="version of the standard's operators; none: the exporter's own choice, 20 today"
    )
    components: Components = Field(
        "all", description="what to export; all: denoiser, VAE decoder and text encoders, or the language model"
    )


def refuse(artifact: Artifact, params: ExportOnnx) -> str:
    return refuse_engine(artifact, params.components, "onnx")


@stage(
    version=3,
    params=ExportOnnx,
    formats={"torch": "onnx"},
    effects=("format",),
    reproducible="bytes",
    libraries=("onnx", "onnxscript", "onnxruntime", "transformers", "torch", "diffusers"),
    extra="onnx",
    refuse=refuse,
)
def run(artifact: Artifact, params: ExportOnnx, context: Context) -> None:
    from compress.building.build import build_engines
    from compress.engines.onnx.build import OnnxBuilder

    names = wanted(artifact, params.components)
    build_engines(artifact, names, OnnxBuilder("float32", opset=params.opset), context)
