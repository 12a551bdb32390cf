"""Round a language model's weights to 2 to 8 bits, as its blocks' outputs ask for, in the formats that servers read.

Use `autoround` for 4 bits and fewer: signed gradients learn how each weight is rounded and where each range ends, a block at a time, on
calibration texts. `awq` scales channels by their activations instead, and takes a fraction of the time. `rtn` rounds to the nearest, reads no
texts, and is the control that both are compared with. `layout: compressed-tensors` is what vLLM and SGLang serve (4 and 8 bits); `gptq` and
`awq` are the older formats that GPTQModel opens. On a processor the weights are decompressed when they are used: smaller, and no faster.
Source: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (2023); Lin et al.,
"AWQ: Activation-aware Weight Quantization" (2023).

    - quantize.autoround: {bits: 4, group_size: 32}
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from pydantic import Field

from compress.artifact import (
    LANGUAGE_MODEL,
    Artifact,
    Quantization,
    derive,
    loaded_weights,
    read_json,
    rewritten,
    write_manifest,
)
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import StageFailed
from compress.files.safetensors_headers import read_header
from compress.machine.deps import version
from compress.model.describing import OPENERS
from compress.params import Fault, Params
from compress.quantization.linears import (
    Linear,
    be_faultless,
    group_faults,
    ignore_faults,
    ignoring,
    left_alone,
    linears,
    named,
    shares,
)
from compress.quantization.sizes import parameters, stored_bytes
from compress.quantizers.autoround import Job, Layout, Method, round_apart
from compress.quantizers.checkpoints import CONFIG, move_saved, write_packing

WIDTHS: dict[Layout, tuple[int, ...]] = {"compressed-tensors": tuple(range(2, 9)), "gptq": (2, 3, 4, 8), "awq": (4,)}
SERVED = (4, 8)  # bits of compressed-tensors that servers have kernels for
ALIGNED = 32  # auto-round leaves layers as they are whose sides this does not divide
DECOMPRESSED = "decompressed"  # what becomes of the weights where transformers runs them
RENAMED = ("w1", "w2", "w3")  # what Mixtral's files call the layers that its class calls otherwise
FLOAT = 4  # bytes of the numbers it works in, at most
TUNED = 5  # times a block's weights: they, how each is rounded, the gradient of that, its best, and the block as it was
TEMPORARY = 4  # times the largest layer's weights, while it is rounded
KEPT = 3  # times all rows: what goes into a block, what comes out, and what comes out of it once rounded
ACTIVATIONS, GATED = 16, 6  # numbers that a gradient needs of each token, by the width and by the widest layer
PACKED = (".weight_packed", ".qweight")  # how the names of packed tensors end


class QuantizeAutoround(Params):
    method: Method = Field(
        "autoround",
        description="how weights are rounded: signed gradients, AWQ's scaled channels, or rtn, to the nearest",
    )
    bits: int = Field(4, ge=2, le=8, description="of each weight; gptq takes 2, 3, 4 and 8, awq 4 alone")
    layout: Layout = Field("compressed-tensors", description="the format that the weights are packed in")
    group_size: int = Field(128, ge=-1, description="weights of a row that share a scale; -1: the whole row")
    symmetric: bool = Field(True, description="whether codes lie symmetrically around zero, without a zero point")
    iters: int = Field(200, ge=1, description="steps of signed gradients a block; for method: autoround")
    samples: int = Field(128, ge=1, description="rows of calibration text, at most: as many as fill whole batches")
    length: int = Field(512, ge=8, description="tokens in a row; at most the model's own length")
    batch: int = Field(8, ge=1, description="rows in a step")
    ignore: tuple[str, ...] = Field(
        (), description="layers that stay wide, as patterns: *.o_proj, model.layers.0, re:.*"
    )


def forecast(artifact: Artifact, params: QuantizeAutoround) -> Forecast:
    """All that does not go together is raised at once."""
    layers = linears(artifact)
    wanted = _wanted(artifact, params, layers)
    left = frozenset(one.name for one in layers) - {one.name for one in wanted}
    be_faultless(_faults(params, layers, wanted))
    reported = f"{shares(layers, left):.1%} of its linear layers' weights in {params.bits} bits" if layers else ""
    return Forecast(
        reported=reported,
        quantization=_packing(params),
        memory_bytes=_memory(artifact, params, wanted),
        warnings=tuple(_cautions(params)),
    )


def _faults(params: QuantizeAutoround, layers: Sequence[Linear], wanted: Sequence[Linear]) -> Iterator[Fault]:
    """All that keeps it from working on these layers."""
    yield from _width_faults(params)
    yield from _zero_faults(params)
    yield from _unavailable_faults(params)
    yield from ignore_faults(layers, params.ignore)
    if layers and not wanted:
        yield Fault(
            "no linear layer of the blocks is left to quantize", "name less in `ignore:`, or leave this stage out"
        )
    yield from group_faults(wanted, params.group_size)
    yield from _shape_faults(wanted)


def _wanted(artifact: Artifact, params: QuantizeAutoround, layers: Sequence[Linear]) -> tuple[Linear, ...]:
    """The layers to be quantized: those of numbered blocks, which is where auto-round looks, that nothing leaves alone."""
    left = named(layers, (*left_alone(artifact.components[LANGUAGE_MODEL].kind), *params.ignore))
    return tuple(o for o in layers if o.name not in left and any(word.isdecimal() for word in o.name.split(".")))


def _width_faults(params: QuantizeAutoround) -> Iterator[Fault]:
    """Bits that a format has no place for, and groups of nothing."""
    if params.group_size == 0:
        yield Fault("group_size: 0 is no group", "give a number of weights that share a scale, or -1 for whole rows")
    if params.bits not in WIDTHS[params.layout]:
        has = ", ".join(map(str, WIDTHS[params.layout]))
        ways = " or ".join(f"layout: {name}" for name, widths in WIDTHS.items() if params.bits in widths)
        yield Fault(f"layout {params.layout} has no {params.bits} bits; it has {has}", f"give one of these, or {ways}")


def _zero_faults(params: QuantizeAutoround) -> Iterator[Fault]:
    """Zero points that come back from no file: compressed-tensors 0.20 packs them, and makes no room for packed ones when it loads."""
    if params.layout == "compressed-tensors" and not params.symmetric:
        message = "symmetric: false in layout compressed-tensors is packed in a way that transformers cannot open"
        yield Fault(message, "give symmetric: true, or layout: gptq")


def _unavailable_faults(params: QuantizeAutoround) -> Iterator[Fault]:
    """What is asked for that the method has no use for."""
    learns, reads = ("iters",), ("samples", "length", "batch")
    unavailable = {"autoround": (), "awq": learns, "rtn": (*learns, *reads)}[params.method]
    for name in unavailable:
        if getattr(params, name) != type(params).model_fields[name].default:
            yield Fault(f"method {params.method} has no use for {name}", f"leave {name} out, or give method: autoround")


def _shape_faults(layers: Sequence[Linear]) -> Iterator[Fault]:
    """Layers that auto-round would pass over without a word, or whose weights no library would find where it looks."""
    if turned := [one.name for one in layers if one.transposed]:
        message = (
            f"{len(turned)} of its layers are Conv1D ({turned[0]}, …), whose weights compressed-tensors cannot hold"
        )
        yield Fault(message, "give quantize.gptq, or a model of another family")
    if mixed := [one.name for one in layers if one.stacked or (one.expert and one.name.rpartition(".")[2] in RENAMED)]:
        message = (
            f"its experts are stored as {mixed[0]}, …, and auto-round finds those alone that have a gate_proj each"
        )
        yield Fault(message, "build.openvino and quantize.nncf: {mode: int4_weights} quantize them as an engine")
    if odd := [one for one in layers if one.inputs % ALIGNED or one.outputs % ALIGNED]:
        listed = ", ".join(f"{one.name} [{one.outputs}, {one.inputs}]" for one in odd)
        message = f"auto-round takes layers whose sides are multiples of {ALIGNED}, and {len(odd)} are not: {listed}"
        yield Fault(message, ignoring(odd))


def _cautions(params: QuantizeAutoround) -> Iterator[str]:
    if params.layout == "compressed-tensors" and params.bits not in SERVED:
        served = " and ".join(map(str, SERVED))
        yield f"vLLM and SGLang serve compressed-tensors of {served} bits; whether yours serves {params.bits} is to be tried"


def _memory(artifact: Artifact, params: QuantizeAutoround, layers: Sequence[Linear]) -> int:
    """What auto-round holds at a time: what is in no block, one block with its gradients, and what goes into and comes out of it for all
    rows. Other blocks are on disk, but for layouts that are written from a whole model."""
    blocks = Counter[str]()
    for one in layers:
        blocks[_block(one.name)] += one.weights
    block = max(blocks.values(), default=0)
    largest = max((one.weights for one in layers), default=0)
    outside = max(0, parameters(artifact, LANGUAGE_MODEL) - sum(blocks.values()))
    whole = 0 if params.layout == "compressed-tensors" else stored_bytes(artifact, LANGUAGE_MODEL)
    if params.method == "rtn":
        return whole + FLOAT * (outside + block + TEMPORARY * largest)
    config = artifact.known_config(LANGUAGE_MODEL)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    ffn = max((one.outputs for one in layers), default=0)
    rows = params.samples * params.length * hidden * KEPT
    at_work = min(params.batch, params.samples) * params.length * (ACTIVATIONS * hidden + GATED * ffn)
    return whole + FLOAT * (outside + TUNED * block + TEMPORARY * largest + rows + at_work)


def _block(name: str) -> str:
    """The block that a layer lies in: all up to the first number."""
    words = name.split(".")
    return ".".join(words[: 1 + next(i for i, word in enumerate(words) if word.isdecimal())])


def unavailable_here(params: QuantizeAutoround) -> str:
    opener = OPENERS[params.layout]
    return (
        ""
        if version(opener)
        else f"{opener} opens {params.layout} checkpoints, and it is not installed: pip install {opener}"
    )


@stage(
    version=1,
    params=QuantizeAutoround,
    needs=("language_model",),
    formats={"torch": "torch"},
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),
    libraries=("auto-round", "compressed-tensors", "torch", "transformers"),
    extra="autoround",
    data=lambda params: () if params.method == "rtn" else ("calibration",),
    forecast=forecast,
    unavailable_here=unavailable_here,
)
def run(artifact: Artifact, params: QuantizeAutoround, context: Context) -> None:
    from compress.opening.full_rows import full_rows

    folder, layers = artifact.folder(LANGUAGE_MODEL), linears(artifact)
    chosen = _wanted(artifact, params, layers)
    be_faultless(_faults(params, layers, chosen))  # a model of the hub has no headers before it is here
    wanted = {one.name for one in chosen}
    left = [one.name for one in layers if one.name not in wanted and not one.head]

    @cache
    def ordered() -> Job:
        rows = () if params.method == "rtn" else full_rows(artifact, params.samples, params.length, context)
        return _job(artifact, params, rows, left, context)

    done, job = round_apart(params.layout, ordered, context), ordered()
    made = derive(artifact, context.out, without=rewritten(artifact, (LANGUAGE_MODEL,)), link=context.link)
    write_packing(done.folder, folder, read_json(done.folder / CONFIG)["quantization_config"])
    move_saved(done.folder, folder, made.folder(LANGUAGE_MODEL))
    _check(made, wanted)
    shutil.rmtree(job.out)
    write_manifest(made.packing(_packing(params)))
    length = len(job.rows[0]) if job.rows else 0
    read = f" on {len(job.rows)} rows of {length} tokens" if job.rows else ""
    context.note(
        f"{params.method} in {params.bits} bits{read}; {DECOMPRESSED}",
        rows=len(job.rows),
        tokens=length,
        ignored=", ".join(sorted(job.ignore)),
        peak_bytes=done.peak_bytes,
        runs_as=DECOMPRESSED,
    )


def _job(
    artifact: Artifact,
    params: QuantizeAutoround,
    rows: Sequence[Sequence[int]],
    left: Sequence[str],
    context: Context,
) -> Job:
    from compress.engines.torch.runtime import stored_dtype

    folder, batch = artifact.folder(LANGUAGE_MODEL), min(params.batch, max(1, len(rows)))
    return Job(
        model=str(folder.absolute()),
        out=str(context.scratch.absolute() / "made"),
        rows=rows[: len(rows) // batch * batch],
        batch=batch,
        ignore=left,
        dtype=str(stored_dtype(folder)).removeprefix("torch."),
        seed=context.seed,
        device=context.opening.device,
        trust_remote_code=context.opening.trust_remote_code,
        **params.model_dump(include={"method", "layout", "bits", "group_size", "symmetric", "iters"}),
    )


def _packing(params: QuantizeAutoround) -> dict[str, Quantization]:
    return {LANGUAGE_MODEL: Quantization(params.layout, params.bits, OPENERS[params.layout])}


def _check(made: Artifact, wanted: set[str]) -> None:
    """That the layers were packed which were to be, and no others.

    Raises:
        StageFailed: auto-round packed others.
    """
    names = [name for file in loaded_weights(made.folder(LANGUAGE_MODEL)) for name in read_header(file).tensors]
    packed = {name.removesuffix(end) for name in names for end in PACKED if name.endswith(end)}
    if packed != wanted:
        less, more = sorted(wanted - packed), sorted(packed - wanted)
        message = [f"left {len(less)} layers as they were ({less[0]}, …)"] if less else []
        message += [f"packed {len(more)} that it was not asked for ({more[0]}, …)"] if more else []
        raise StageFailed(f"auto-round {' and '.join(message)}", fix="name them in `ignore`, or please report this")
