"""Pack a language model's linear layers, or a text encoder's, into 4 or 8 bits with bitsandbytes, without any data.

Use it where a model must fit into less memory and stay a model of transformers: plain `from_pretrained` opens what it leaves, wherever
bitsandbytes is installed. `nf4` and `fp4` keep blocks of 64 weights in 4 bits; `int8` keeps rows in 8 and computes in integers, but for
the columns in which an activation exceeds `threshold`. On a processor it makes nothing faster, and 4 bits take layers whose inputs are a
multiple of 64 and whose outputs are one of 32: those with bfloat16 products read them so. Embeddings, the head and what `ignore:`
names stay as they are: `model.layers.0.*`, `*.o_proj`, `re:.*proj`. Of a pipeline name its text encoders; diffusers packs a denoiser so on
a GPU alone. Put it behind everything that changes weights.
Source: bitsandbytes; Dettmers et al., "LLM.int8()" (2022) and "QLoRA" (2023).

    - quantize.bitsandbytes: {mode: int8}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization, read_json
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import Refusal
from compress.machine.devices import CPU
from compress.params import Params, unused_faults
from compress.quantization.linears import be_faultless, ignoring
from compress.quantization.packed_places import level, why_not_there
from compress.quantization.reach import Packer, faults, model_library, packing_forecast, reach, refuse_reach
from compress.quantizers.packers import pack_all

if TYPE_CHECKING:
    import torch

BITSANDBYTES = Packer("bitsandbytes", takes_transposed=True, unpacks_called=True)
THRESHOLD = 6.0
FOUR = ("nf4", "fp4")
USED = {"double_quant": FOUR, "compute": FOUR, "threshold": ("int8",)}  # by which modes
BLOCK, ROWS = 64, 32  # of inputs that share a scale, and of outputs that lie together where products are bfloat16


class QuantizeBitsandbytes(Params):
    mode: Literal["nf4", "fp4", "int8"] = Field("nf4", description="how a weight is kept: 4 bits of two kinds, or 8")
    components: tuple[str, ...] = Field((), description="what to pack; none named: the language model, or the denoiser")
    ignore: tuple[str, ...] = Field((), description="layers that stay as they are, by name or pattern")
    double_quant: bool = Field(False, description="in 4 bits: whether the scales of blocks are packed too, into 8")
    compute: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="in 4 bits: the number type that products are computed in; auto: the model's own"
    )
    threshold: float = Field(
        THRESHOLD, ge=0, description="in int8: the activation from which a column is computed unpacked; 0: none"
    )


def refuse(artifact: Artifact, params: QuantizeBitsandbytes) -> str:
    return refuse_reach(artifact, wanted(artifact, params), params.ignore, BITSANDBYTES)


def misplaced(artifact: Artifact, params: QuantizeBitsandbytes, device: str) -> str:
    names = wanted(artifact, params)
    for name in names:
        if why := why_not_there(level(model_library(artifact, name), "bitsandbytes", ""), device):
            return f"as diffusers packs `{name}`, {why}: quantize.torchao packs it on a processor"
    known = params.mode != "int8" and device == CPU and not faults(artifact, names, params.ignore)
    return next(filter(None, (_odd(artifact, name, params) for name in names)), "") if known else ""


def _odd(artifact: Artifact, name: str, params: QuantizeBitsandbytes) -> str:
    """Which layers bitsandbytes packs and then cannot compute on a processor with bfloat16 products, or ""."""
    packed = reach(artifact, name, params.ignore).packed
    odd = [one for one in packed if one.inputs % BLOCK or one.outputs % ROWS]
    if not odd:
        return ""
    kinds = {f"*.{one.name.rpartition('.')[2]}": f"{one.inputs} → {one.outputs}" for one in odd}
    listed = ", ".join(f"{pattern} ({sizes})" for pattern, sizes in kinds.items())
    message = (
        f"on a processor {params.mode} takes layers whose inputs are a multiple of {BLOCK} and whose outputs are one of {ROWS}, "
        f"and {len(odd)} layers of `{name}` are others: {listed}"
    )
    return Refusal(message, f"mode: int8, or {ignoring(odd, packed)}")


def forecast(artifact: Artifact, params: QuantizeBitsandbytes) -> Forecast:
    be_faultless(unused_faults(params, "mode", USED))
    return packing_forecast(artifact, wanted(artifact, params), params.ignore, packing(params), params.mode)


@stage(
    version=1,
    params=QuantizeBitsandbytes,
    formats={"torch": "torch"},
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),
    libraries=("bitsandbytes", "accelerate"),
    extra="bitsandbytes",
    refuse=refuse,
    forecast=forecast,
    misplaced=misplaced,
    kernels=lambda params: "llm_int8" if params.mode == "int8" else "nf4",
)
def run(artifact: Artifact, params: QuantizeBitsandbytes, context: Context) -> None:
    from compress.engines.torch.runtime import silent_libraries

    def config(name: str, left: tuple[str, ...]) -> Any:
        with silent_libraries(diffusers=True):  # importing them looks for native code, and says so
            return config_of(artifact, name, left, params)

    pack_all(artifact, wanted(artifact, params), params.ignore, config, packing(params), context)


def wanted(artifact: Artifact, params: QuantizeBitsandbytes) -> tuple[str, ...]:
    return artifact.choose(params.components, bool)


def packing(params: QuantizeBitsandbytes) -> Quantization:
    return Quantization("bitsandbytes", 8 if params.mode == "int8" else 4, "bitsandbytes")


def config_of(artifact: Artifact, name: str, left: tuple[str, ...], params: QuantizeBitsandbytes) -> Any:
    """The config that the component's own library is given."""
    import diffusers
    import transformers

    library: Any = diffusers if model_library(artifact, name) == "diffusers" else transformers
    options: dict[str, Any] = {"llm_int8_skip_modules": list(left)}
    if params.mode == "int8":
        options |= {"load_in_8bit": True, "llm_int8_threshold": params.threshold}
    else:
        options |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": params.mode,
            "bnb_4bit_use_double_quant": params.double_quant,
            "bnb_4bit_compute_dtype": _computed(artifact, name, params),
        }
    return library.BitsAndBytesConfig(**options)


def _computed(artifact: Artifact, name: str, params: QuantizeBitsandbytes) -> torch.dtype:
    import torch

    from compress.engines.torch.runtime import stored_dtype
    from compress.quantizers.packing import opened_dtype

    if params.compute != "auto":
        found: torch.dtype = getattr(torch, params.compute)
        return found
    config = read_json(artifact.folder(name) / "config.json") if name == LANGUAGE_MODEL else {}
    dtype = opened_dtype(artifact, name) or config.get("dtype") or config.get("torch_dtype")
    return getattr(torch, str(dtype)) if dtype else stored_dtype(artifact.folder(name))
