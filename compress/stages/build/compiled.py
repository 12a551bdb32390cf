"""Compile a model's components to native code for this processor or GPU, each compared with torch on real inputs before it is kept.

Use it after everything that changes torch weights, where the model stays on machines like this one: torch's compiler fuses a
graph's operations into C++, for a GPU into kernels that C++ launches, and builds that into one package, which needs torch and nothing
else. The package is for the device of the run (`device: cuda`), and runs under exactly the torch it was built with, on a processor with the
same instructions and a GPU of the same compute capability; elsewhere the recipe builds it anew. It takes any batch
that `profile` allows, texts of any length, and images of the size the pipeline was built at. A VAE's engine is its decoder.
`bfloat16` and `float16` round weights and compute in them: the first is fast where the processor has the instructions, and on GPUs from
SM80 on, the second is for GPUs alone. Building needs a C++ compiler and about a minute a component, for a GPU also the CUDA toolkit's headers.
Source: AOTInductor (`torch._inductor.aoti_compile_and_package`), and the exporter of transformers.

    - build.compiled: {}
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from pydantic import Field

from compress.artifact import Artifact
from compress.catalogue import stage
from compress.context import Context
from compress.engines.compiled import ENGINE
from compress.errors import Refusal
from compress.machine import gpus
from compress.machine.devices import kind_of
from compress.model.exportable import Batches, Components, refuse_engine, wanted
from compress.params import Params, one_of

if TYPE_CHECKING:
    Precision = str
else:
    Precision = one_of(ENGINE.precisions)


class BuildCompiled(Params):
    precision: Precision = Field("float32", description="what the engine computes in; it takes and gives float32")
    components: Components = Field(
        "all", description="what to build; all: denoiser, VAE decoder and text encoders, or the language model"
    )
    profile: Batches = Field(
        default_factory=lambda: Batches(),
        description="the batches it takes, and the usual one, for which the code is laid out; a text may have any length",
    )


def without_compiler() -> str:
    """Why this machine cannot build, or ""."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return (
            f"this machine has no C++ compiler `{compiler}`: install one, such as the package g++, or set CXX to yours"
        )
    return ""


def misplaced(artifact: Artifact, params: BuildCompiled, device: str) -> str:
    if kind_of(device) == "cuda" and (why := gpus.without_toolkit()):
        return Refusal(why, "install it, set CUDA_HOME to its folder, or leave this stage out")
    if kind_of(device) != "cuda" and params.precision == "float16":
        return Refusal("float16 is for GPUs here", "set precision to bfloat16 or float32")
    return ""


def abilities() -> str:
    return without_compiler() or (gpus.without_toolkit() if gpus.gpu_here() else "")


def refuse(artifact: Artifact, params: BuildCompiled) -> str:
    return without_compiler() or refuse_engine(artifact, params.components, "compiled")


@stage(
    version=6,
    params=BuildCompiled,
    formats={"torch": "compiled"},
    effects=("format",),
    reproducible="behaviour",
    bound_to=("isa",),
    libraries=("torch", "transformers", "diffusers"),
    refuse=refuse,
    misplaced=misplaced,
    machine=abilities,
    kernels=lambda params: params.precision,
)
def run(artifact: Artifact, params: BuildCompiled, context: Context) -> None:
    from compress.building.build import build_engines
    from compress.engines.compiled.build import CompiledBuilder

    names = wanted(artifact, params.components)
    builder = CompiledBuilder(params.precision, params.profile, context.scratch, context.opening)
    build_engines(artifact, names, builder, context)
