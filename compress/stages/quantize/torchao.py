"""Pack the linear layers of a language model, a denoiser, text encoders or a VAE into 8 or 4 bits with torchao, without any data.

Use it where a model of transformers or diffusers must get smaller and stay one: plain `from_pretrained` opens what it leaves, wherever
torchao is installed; diffusers needs the `torch_dtype` that the model had as an argument. `int8_weights` keeps rows of weights in 8 bits;
`int8_dynamic` rounds each token's activations too, and computes in integers. On a processor neither need be faster: measure. On NVIDIA
GPUs there are also `int4_weights` (bfloat16 models, from SM80) and `float8` (each row of weights and activations with a scale of its own,
from SM89). Embeddings, heads, convolutions and what `ignore:` names stay as they are (`*.proj_out`, `re:.*proj`); the plan says what share
is reached. torchao's int2 to int7 store bytes, which saves nothing, and are left out. Put it behind everything that changes weights.
Source: torchao.

    - quantize.torchao: {mode: int8_weights}
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from compress.artifact import Artifact, Quantization
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.params import Params
from compress.quantization.packed_places import FLOAT8, INT4, abilities, needs_bfloat16, why_not_there
from compress.quantization.reach import Packer, model_library, packing_forecast, refuse_reach
from compress.quantizers.packers import pack_all

TORCHAO = Packer("torchao", takes_transposed=False)
LEAST = {"int4_weights": INT4, "float8": FLOAT8}  # by mode, the compute capability that it takes
Mode = Literal["int8_weights", "int8_dynamic", "int4_weights", "float8"]


class QuantizeTorchao(Params):
    mode: Mode = Field(
        "int8_weights", description="what is narrow: weights, or activations too; the last two need a GPU"
    )
    components: tuple[str, ...] | Literal["all"] = Field(
        (), description="what to pack; none named: the denoiser, or the language model; all: text encoders and VAE too"
    )
    ignore: tuple[str, ...] = Field((), description="layers that stay as they are, by name or pattern")
    group_size: Literal[32, 64, 128, 256] = Field(128, description="in int4: weights of a row that share a scale")


def refuse(artifact: Artifact, params: QuantizeTorchao) -> str:
    if params.mode != "int4_weights" and params.group_size != QuantizeTorchao().group_size:
        return f"group_size is for int4_weights: leave it out of {params.mode}"
    if params.mode == "int4_weights" and (why := needs_bfloat16(artifact)):
        return why
    return refuse_reach(artifact, wanted(artifact, params), params.ignore, TORCHAO)


def misplaced(artifact: Artifact, params: QuantizeTorchao, device: str) -> str:
    why = why_not_there(LEAST.get(params.mode, 0), device)
    return f"{params.mode}: {why}" if why else ""


def forecast(artifact: Artifact, params: QuantizeTorchao) -> Forecast:
    group = params.group_size if params.mode == "int4_weights" else 0
    return packing_forecast(artifact, wanted(artifact, params), params.ignore, packing(params), params.mode, group)


@stage(
    version=1,
    params=QuantizeTorchao,
    formats={"torch": "torch"},
    effects=("weights",),
    reproducible="bytes",
    libraries=("torchao",),
    extra="torchao",
    refuse=refuse,
    forecast=forecast,
    misplaced=misplaced,
    machine=abilities,
    kernels=lambda params: "int8" if params.mode == "int8_dynamic" else params.mode,
)
def run(artifact: Artifact, params: QuantizeTorchao, context: Context) -> None:
    from compress.engines.torch.runtime import silent_libraries

    def config(name: str, left: tuple[str, ...]) -> Any:
        with silent_libraries():  # importing them looks for native code, and says so
            return config_of(artifact, name, left, params)

    pack_all(artifact, wanted(artifact, params), params.ignore, config, packing(params), context)


def wanted(artifact: Artifact, params: QuantizeTorchao) -> tuple[str, ...]:
    return artifact.choose(params.components, lambda format: format == "torch")


def packing(params: QuantizeTorchao) -> Quantization:
    return Quantization("torchao", 4 if params.mode == "int4_weights" else 8, "torchao")


def config_of(artifact: Artifact, name: str, left: tuple[str, ...], params: QuantizeTorchao) -> Any:
    """The config that the component's own library is given. torchao's habit of setting the compiler of the whole process is turned off."""
    import diffusers
    import transformers
    from torchao import quantization

    own = {"set_inductor_config": False}
    how: dict[Mode, Any] = {
        "int8_weights": lambda: quantization.Int8WeightOnlyConfig(**own),
        "int8_dynamic": lambda: quantization.Int8DynamicActivationInt8WeightConfig(**own),
        "int4_weights": lambda: quantization.Int4WeightOnlyConfig(
            group_size=params.group_size, int4_packing_format="tile_packed_to_4d", **own
        ),
        "float8": lambda: quantization.Float8DynamicActivationFloat8WeightConfig(
            granularity=quantization.PerRow(), **own
        ),
    }
    library: Any = diffusers if model_library(artifact, name) == "diffusers" else transformers
    return library.TorchAoConfig(how[params.mode](), modules_to_not_convert=list(left))
