"""Build TensorRT engines of a model's components for NVIDIA GPUs, those available here or others.

Use it last, for the GPU that the model will run on: an engine is fast there, opens nowhere else, and cannot be changed any more.
With TensorRT-RTX it is built ahead of time on any machine, without a GPU; the data-centre library builds on the GPU itself. Beside
the engines their ONNX is kept: a GPU or library version that none was built for gets one from it, in memory, when the model is
opened. Networks are strongly typed: `float16` and `bfloat16` are cast in torch, so that what a model's authors compute in float32
stays so. Where no GPU of a target is available here, the ONNX is compared with torch in place of the engine, through ONNX Runtime, and
nothing but `size` can be measured. Source: NVIDIA TensorRT and TensorRT-RTX.

    - build.tensorrt: {targets: [SM86, SM89]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from compress.artifact import Artifact
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.engines.tensorrt import ENGINE
from compress.errors import UserError
from compress.machine import gpus
from compress.model.bit_widths import packing
from compress.model.exportable import Components, Profile, refuse_engine, wanted
from compress.params import Params, one_of
from compress.sources.models import parameter_count

WEIGHTS_AT_ONCE = 4  # float32 copies: torch's own, the graph's, the parser's, and the engine's bytes
KERNEL_BYTES = 20_000_000  # of an engine beside its weights; measured on small models, up to 16 MB
CALIBRATED = ("int8", "float8")
LIBRARY_BYTES = 1_000_000_000  # the builder itself beside them, measured on small models

if TYPE_CHECKING:
    Precision = str
else:
    Precision = one_of(ENGINE.precisions)


class BuildTensorRT(Params):
    precision: Precision = Field(
        "float32",
        description="what the networks compute in; int8, float8 (E4M3, SM89 and later): weights and activations, the rest in float32; "
        "int8_weights, int4_weights: weights alone, in a float16 network",
    )
    targets: gpus.Targets = Field(
        gpus.HERE, description="compute capabilities to build for, such as [SM86, SM89]; here: the GPU available here"
    )
    library: Literal["auto", "tensorrt", "tensorrt-rtx"] = Field(
        "auto", description="what builds and runs; auto: tensorrt where it is installed and knows the targets, else RTX"
    )
    profile: Profile = Field(
        default_factory=lambda: Profile(),
        description="the sizes of calls; a denoiser takes twice as many rows as prompts",
    )
    components: Components = Field(
        "all", description="what to build; all: denoiser, VAE decoder and text encoders, or the language model"
    )

    samples: int = Field(
        64, ge=1, le=2000, description="calls to each component that int8 and float8 are calibrated on"
    )

    @field_validator("targets")
    @classmethod
    def _named_once(cls, targets: gpus.Targets) -> gpus.Targets:
        if targets != gpus.HERE and (not targets or len(set(targets)) < len(targets)):
            raise ValueError("name each target once, and one at least, or say: here")
        return targets


def refuse(artifact: Artifact, params: BuildTensorRT) -> str:
    if params.precision in CALIBRATED and artifact.writes_text:
        return f"{params.precision} is calibrated on images' components: a language model takes int8_weights or int4_weights"
    return refuse_engine(artifact, params.components, "tensorrt")


def _choose(params: BuildTensorRT) -> tuple[gpus.Library, tuple[str, ...]]:
    """Which library builds, and for which targets.

    Raises:
        UserError, MissingLibrary: as `gpus.choose`; or a target does not know the precision.
    """
    library, targets = gpus.choose(params.library, params.targets)
    if params.precision == "float8" and (old := [t for t in targets if not gpus.has_float8(t)]):
        raise UserError(
            f"{', '.join(old)} does not compute in float8: SM89 was the first",
            fix="set precision: int8, or name other targets",
        )
    return library, targets


def forecast(artifact: Artifact, params: BuildTensorRT) -> Forecast:
    """Which library builds for what, and the memory that takes."""
    library, targets = _choose(params)
    names = wanted(artifact, params.components)
    weights = sum(4 * parameter_count(artifact.folder(name)) for name in names)
    reported = f"{library.name} {library.version} builds for {', '.join(targets)}"
    return Forecast(
        reported=reported,
        quantization=packing(names, ENGINE.format, params.precision),
        scratch_bytes=(weights + KERNEL_BYTES * len(names)) * len(targets),  # engines, beside the ONNX
        memory_bytes=WEIGHTS_AT_ONCE * weights + LIBRARY_BYTES,
    )


def unavailable_here(params: BuildTensorRT) -> str:
    return gpus.why_unavailable(*_choose(params))


@stage(
    version=6,
    params=BuildTensorRT,
    formats={"torch": "tensorrt"},
    effects=("format",),
    reproducible="behaviour",
    bound_to=("gpu",),
    libraries=("onnx", "onnxruntime", "onnxscript", "transformers", "torch", "diffusers"),
    extra="tensorrt",
    refuse=refuse,
    forecast=forecast,
    unavailable_here=unavailable_here,
    machine=gpus.abilities,
    kernels=lambda params: params.precision,
    built_for=lambda params: _choose(params)[1],
    data=lambda params: ("calibration",) if params.precision in CALIBRATED else (),
)
def run(artifact: Artifact, params: BuildTensorRT, context: Context) -> None:
    from compress.building.build import build_engines
    from compress.engines.tensorrt.build import TensorRTBuilder

    library, targets = _choose(params)
    builder = TensorRTBuilder(params.precision, library, targets, params.profile, context.scratch)
    samples = params.samples if params.precision in CALIBRATED else 0
    build_engines(artifact, wanted(artifact, params.components), builder, context, samples)
    if not builder.here:
        context.note(
            f"the ONNX was compared with torch, through ONNX Runtime; the engines for {', '.join(targets)} were not run, "
            "for no such GPU is available here",
            compared="onnx",
            targets=list(targets),
        )
