"""Quantize a language model's linear layers to 2, 3, 4 or 8 bits, each correcting for the errors of the columns before it (GPTQ).

Use it for checkpoints that transformers, vLLM and SGLang open in auto-gptq's format: `AutoModelForCausalLM.from_pretrained` needs
`optimum` and `gptqmodel` beside it, and nothing of pare. Blocks are calibrated one by one, so memory holds one block's inputs and
not all activations. On a processor, 4 bits with groups of 32 to 128 run on a 4-bit kernel; whatever else is decompressed at each
call, which makes it smaller and no faster. Embeddings and the head stay as they are.
Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023), through GPTQModel.

    - quantize.gptq: {bits: 4, group_size: 32}
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization, derive, rewritten, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.events import Event
from compress.model.families import FAMILIES, common_name
from compress.params import Fault, Params
from compress.quantization.linears import (
    DIVISORS,
    Linear,
    be_faultless,
    group_faults,
    ignore_faults,
    left_alone,
    linears,
    named,
    packing_faults,
    shares,
)
from compress.quantization.reach import share_of_all
from compress.quantizers.checkpoints import move_saved

METHOD, LIBRARY = "gptq", "gptqmodel"
OWN_CONFIG = "quantize_config.json"  # where auto-gptq looks for how weights are packed
INT4_KERNEL = ("TorchAtenLinear", "TorchFusedLinear")  # what of GPTQModel multiplies packed weights on a processor
FLOAT32 = 4  # bytes
# Fewer workers raise an error.
ENVIRONMENT = {"GPTQMODEL_CPU_WORKERS": "2", "GPTQMODEL_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# By class, the blocks that GPTQModel quantizes and transformers opens again.
TRIED = (
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Gemma2",
    "Gemma3",
    "Phi3",
    "OPT",
    "Granite",
    "Olmo2",
    "SmolLM3",
    "Cohere",
    "Cohere2",
)
STACKS = {
    kind: FAMILIES[kind].stacks[0].path for kind in (*(f"{name}ForCausalLM" for name in TRIED), "GPT2LMHeadModel")
}
# What transformers cannot open packed: where it makes a GPT-2 it initialises the weight of these by name.
UNOPENED = {"GPT2LMHeadModel": ("*.c_proj",)}
ONE_WIDTH = "transformers opens no GPTQ checkpoint whose layers differ in bits, and quantize.autoround makes one that it does; here give a number"
MIXTURES = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")


def _one_width(bits: object) -> object:
    """Optimum, through which transformers opens GPTQ, makes every layer as wide as `bits`, whatever GPTQModel's `dynamic` says of it."""
    if bits == "auto":
        raise ValueError(ONE_WIDTH)
    return bits


class QuantizeGPTQ(Params):
    bits: Annotated[Literal[2, 3, 4, 8], BeforeValidator(_one_width)] = Field(4, description="width of a weight")
    group_size: Literal[-1, 16, 32, 64, 128, 256, 512, 1024] = Field(
        128, description="weights of a row that share a scale; -1: the whole row"
    )
    act_order: bool = Field(
        False,
        description="quantize the columns with the largest inputs first, each group of any columns: more exact at few bits, slower to run",
    )
    symmetric: bool = Field(True, description="whether codes lie symmetrically around zero")
    damp: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of the Hessian's mean diagonal that is added to it, so that it can be inverted",
    )
    samples: int = Field(128, ge=1, le=4096, description="calibration documents")
    length: Annotated[int, Field(ge=2, le=32768)] = Field(512, description="tokens of a document that are read at most")
    ignore: tuple[str, ...] = Field(
        (),
        description="layers to leave as they are: globs on module names (*.o_proj, model.layers.0), or re: and an expression",
    )


def refuse(artifact: Artifact, params: QuantizeGPTQ) -> str:
    kind = artifact.components[LANGUAGE_MODEL].kind
    if kind in MIXTURES:
        return (
            f"{kind} keeps its experts side by side in one tensor, and transformers opens no GPTQ checkpoint of those"
        )
    if kind not in STACKS:
        return f"it is tried on {', '.join(map(common_name, STACKS))}, and not on {kind}"
    return ""


def forecast(artifact: Artifact, params: QuantizeGPTQ) -> Forecast:
    layers = linears(artifact)
    chosen = _chosen(layers, artifact, params)
    packed = {LANGUAGE_MODEL: Quantization(METHOD, params.bits, LIBRARY)}
    if not layers:
        return Forecast(quantization=packed)
    share = shares(layers, frozenset(one.name for one in layers) - {one.name for one in chosen})
    of_all = share_of_all(artifact, LANGUAGE_MODEL, chosen)
    reported = (
        f"{len(chosen)} of {len(layers)} linear layers, {share:.1%} of their weights{of_all}, at {params.bits} bits"
    )
    kept = [
        one.name
        for one in layers
        if any(fnmatchcase(one.name, p) for p in UNOPENED.get(artifact.components[LANGUAGE_MODEL].kind, ()))
    ]
    warnings = (
        (f"{len(kept)} layers stay as wide as they are, for transformers cannot open them packed: {kept[0]}, …",)
        if kept
        else ()
    )
    return Forecast(
        quantization=packed, reported=reported, memory_bytes=_memory(layers, chosen, params), warnings=warnings
    )


@stage(
    version=1,
    params=QuantizeGPTQ,
    needs=("language_model",),
    formats={"torch": "torch"},
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),  # Hessians are sums of rounded numbers
    libraries=("gptqmodel", "optimum", "transformers", "torch"),
    extra="gptq",
    refuse=refuse,
    forecast=forecast,
    data=lambda params: ("calibration",),
    kernels=lambda params: "marlin" if params.bits in (4, 8) else "unpacked",
)
def run(artifact: Artifact, params: QuantizeGPTQ, context: Context) -> None:
    from compress.quantizers.own_process import in_own_process

    layers = linears(artifact)
    chosen = [one.name for one in _chosen(layers, artifact, params)]
    left = [one.name for one in layers if one.name not in chosen and _in_block(one, artifact)]
    made = derive(artifact, context.out, without=rewritten(artifact, (LANGUAGE_MODEL,)), link=context.link)
    saved = _emptied(context.scratch / "saved")

    @cache
    def ordered() -> dict[str, Any]:
        from compress.engines.torch.runtime import stored_dtype
        from compress.opening.rows import calibration_rows

        return {
            "folder": str(artifact.folder(LANGUAGE_MODEL).absolute()),
            "out": str(saved),
            "offload": str(_emptied(context.scratch / "offload")),
            "rows": calibration_rows(artifact, params.samples, params.length, context),
            "config": _config(params),
            "layers": chosen,
            "left": left,
            "dtype": str(stored_dtype(artifact.folder(LANGUAGE_MODEL))).removeprefix("torch."),
            "seed": context.seed,
        }

    module = "compress.quantizers.gptq"
    found = in_own_process("GPTQModel", module, ordered, context, ENVIRONMENT, without=("GPTQMODEL_",))
    move_saved(saved, artifact.folder(LANGUAGE_MODEL), made.folder(LANGUAGE_MODEL), OWN_CONFIG)
    _tell(found, ordered()["rows"], params, context)
    write_manifest(made.packing({LANGUAGE_MODEL: Quantization(METHOD, params.bits, LIBRARY)}))


def _chosen(layers: Sequence[Linear], artifact: Artifact, params: QuantizeGPTQ) -> tuple[Linear, ...]:
    """The layers that are quantized: those of the blocks, but for what stays as it is.

    Raises:
        UserError: a pattern names none, nothing is left, or the group size does not divide all of them.
    """
    kind = artifact.components[LANGUAGE_MODEL].kind
    left = named(layers, (*left_alone(kind), *UNOPENED.get(kind, ()), *params.ignore))
    faults = ignore_faults(layers, params.ignore)
    chosen = tuple(one for one in layers if one.name not in left and _in_block(one, artifact))
    if layers and not chosen:
        faults = (Fault("ignore: names every layer of the blocks", "leave out fewer, or leave this stage out"),)
    if (params.bits, params.group_size) == (4, 16):
        message = "4 bits in groups of 16 do not run: GPTQModel hands them to a kernel of torch that takes groups of 32 or more"
        faults = (*faults, Fault(message, "group_size: 32"))
    sizes = [size for size in DIVISORS if (params.bits, size) != (4, 16)]
    be_faultless((*faults, *group_faults(chosen, params.group_size, sizes), *packing_faults(chosen, params.bits)))
    return chosen


def _in_block(one: Linear, artifact: Artifact) -> bool:
    return one.name.startswith(f"{STACKS[artifact.components[LANGUAGE_MODEL].kind]}.")


def _config(params: QuantizeGPTQ) -> dict[str, Any]:
    """What GPTQModel's QuantizeConfig is given."""
    given = {"bits": params.bits, "group_size": params.group_size, "desc_act": params.act_order}
    if params.group_size < 0:
        given["act_group_aware"] = False  # GPTQModel's habit, which orders groups, and takes whole rows for an error
    # Other ways to pack compile C++ first.
    return given | {"sym": params.symmetric, "damp_percent": params.damp, "pack_impl": "original"}


def _memory(layers: Sequence[Linear], chosen: Sequence[Linear], params: QuantizeGPTQ) -> int:
    """Bytes at the peak: the model, what a block is given and gives for every token, and the Hessian of its widest layer with what
    inverting it takes."""
    head = next((one for one in layers if one.head), chosen[0])  # its table of embeddings is as large
    tokens, widest = params.samples * params.length, max(one.inputs for one in chosen)
    weights, hidden = sum(one.weights for one in layers) + head.weights, head.inputs
    return FLOAT32 * (weights + 2 * tokens * hidden + 4 * widest**2)


def _tell(found: dict[str, Any], rows: Sequence[Sequence[int]], params: QuantizeGPTQ, context: Context) -> None:
    kernels = ", ".join(f"{count} × {name}" for name, count in sorted(found["kernels"].items()))
    fast = bool(found["kernels"]) and set(found["kernels"]) <= set(INT4_KERNEL)
    runs = "on a 4-bit kernel" if fast else "decompressed at each call"
    facts = {"tokens": sum(map(len, rows)), "peak_bytes": found["peak_bytes"], "kernels": kernels, "arithmetic": runs}
    message = f"calibrated on {facts['tokens']} tokens; transformers runs it {runs} on this processor ({kernels})"
    context.note(message, component=LANGUAGE_MODEL, **facts)
    if found["rounded"]:
        names = ", ".join(found["rounded"][:3])
        sentence = f"{len(found['rounded'])} layers saw too few tokens and are rounded to the nearest code: {names}"
        context.emit(Event("warning", context.node, sentence))


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder.absolute()
