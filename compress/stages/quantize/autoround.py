"""Round a language model's weights to 2 to 8 bits, as its blocks' outputs ask for, in the formats that servers read.

Use `autoround` for 4 bits and fewer: signed gradients learn how each weight is rounded and where each range ends, a block at a time, on
calibration texts. `awq` scales channels by their activations instead, and takes a fraction of the time. `rtn` rounds to the nearest, reads no
texts, and is the control that both are compared with. `layout: compressed-tensors` is what vLLM and SGLang serve (4 and 8 bits); `gptq` and
`awq` are the older formats that GPTQModel opens. On a processor the weights are decompressed when they are used: smaller, and no faster.
`bits: auto` gives each layer one of the widths that `analyze.sensitivity` measured, so that all weights take `budget` and cost least; what
servers load as one layer (queries, keys and values, the two gates) gets one width. compressed-tensors alone says each layer's width.
Source: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (2023); Lin et al.,
"AWQ: Activation-aware Weight Quantization" (2023).

    - quantize.autoround: {bits: 4, group_size: 32}
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Literal

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
from compress.model.describing import OPENERS, bits_by_layer
from compress.model.families import common_name
from compress.params import Fault, Later, Params, Share, unused_faults
from compress.quantization.automatic import (
    LISTED,
    Asked,
    Sizes,
    automatic_faults,
    check_reckoned,
    rounding_cautions,
    share_out,
    widths_in_reach,
    widths_text,
)
from compress.quantization.budgets import Choice
from compress.quantization.linears import (
    DIVISORS,
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
from compress.quantization.packed_sizes import costs_of, loaded_together, packed_sizes, weight_bytes
from compress.quantization.reach import share_of_all
from compress.quantization.sensitivity import read
from compress.quantization.sizes import parameters, stored_bytes
from compress.quantizers.autoround import Job, Layout, Method, round_apart
from compress.quantizers.checkpoints import CONFIG, move_saved, write_packing
from compress.stages.quantize.gptq import STACKS

WIDTHS: dict[Layout, tuple[int, ...]] = {"compressed-tensors": tuple(range(2, 9)), "gptq": (2, 3, 4, 8), "awq": (4,)}
MIXED: Layout = "compressed-tensors"  # says each layer's width; the others say one for all
UNMAPPED = ("BertLMHeadModel",)  # tried: auto-round 0.16
SERVED = (4, 8)  # bits of compressed-tensors that servers have kernels for
ALIGNED = 32  # auto-round leaves layers as they are whose sides this does not divide
DECOMPRESSED = "decompressed"  # what becomes of the weights where transformers runs them
USED = {
    "iters": ("autoround",),
    **dict.fromkeys(("samples", "length", "batch"), ("autoround", "awq")),
}  # by which methods
RENAMED = ("w1", "w2", "w3")  # what Mixtral's files call the layers that its class calls otherwise
MANY = 0  # bits of a packing that has several widths
WORD, WORD_BYTES, SHAPE = 32, 4, 16  # bits and bytes of a word of codes, and bytes of a shape
SCALE = 2  # bytes: auto-round writes float16
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
    bits: Annotated[int, Field(ge=2, le=8)] | Literal["auto"] = Field(
        4,
        description="of each weight; gptq takes 2, 3, 4 and 8, awq 4 alone; auto: by what analyze.sensitivity measured, within the budget",
    )
    budget: Annotated[Share | str | None, Later()] = Field(None, description=LISTED)
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
    be_faultless(_faults(artifact, params, layers, wanted))
    how = f"a budget of {params.budget}" if params.bits == "auto" else f"{params.bits} bits"
    of_all = share_of_all(artifact, LANGUAGE_MODEL, wanted)
    reported = f"{shares(layers, left):.1%} of its linear layers' weights{of_all}, in {how}" if layers else ""
    return Forecast(
        reported=reported,
        quantization=_packing(params),
        memory_bytes=_memory(artifact, params, wanted),
        warnings=(*_cautions(artifact, params), *rounding_cautions(artifact, (LANGUAGE_MODEL,), asked(params))),
    )


def asked(params: QuantizeAutoround) -> Asked:
    """What is asked for, where the widths are chosen."""
    group = 0 if params.group_size == -1 else params.group_size
    return Asked(params.bits == "auto", params.budget, WIDTHS[params.layout], params.symmetric, group, every=False)


def _faults(
    artifact: Artifact, params: QuantizeAutoround, layers: Sequence[Linear], wanted: Sequence[Linear]
) -> Iterator[Fault]:
    """All that keeps it from working on these layers."""
    yield from _family_faults(artifact.components[LANGUAGE_MODEL].kind, params)
    yield from _width_faults(params)
    yield from _zero_faults(params)
    yield from unused_faults(params, "method", USED)
    if params.bits != "auto" or params.layout == MIXED:
        sizing = partial(_sizes, artifact, params, wanted)
        yield from automatic_faults(artifact, (LANGUAGE_MODEL,), asked(params), lambda _, widths: sizing(widths))
    yield from ignore_faults(layers, params.ignore)
    if layers and not wanted:
        yield Fault(
            "no linear layer of the blocks is left to quantize", "name less in `ignore:`, or leave this stage out"
        )
    yield from group_faults(wanted, params.group_size, [size for size in DIVISORS if size % ALIGNED == 0])
    yield from _shape_faults(wanted)


def _wanted(artifact: Artifact, params: QuantizeAutoround, layers: Sequence[Linear]) -> tuple[Linear, ...]:
    """The layers to be quantized: those of numbered blocks, which is where auto-round looks, that nothing leaves alone."""
    left = named(layers, (*left_alone(artifact.components[LANGUAGE_MODEL].kind), *params.ignore))
    return tuple(o for o in layers if o.name not in left and any(word.isdecimal() for word in o.name.split(".")))


def _family_faults(kind: str, params: QuantizeAutoround) -> Iterator[Fault]:
    """What a format's opener, or a method, does not know of a family."""
    if params.layout != MIXED and kind not in STACKS:
        message = f"layout {params.layout} is opened again of {', '.join(map(common_name, STACKS))}, and this is {kind}"
        yield Fault(message, f"layout: {MIXED}")
    if params.method == "awq" and kind in UNMAPPED:
        message = f"auto-round knows no layers of {kind} whose scales AWQ could move"
        yield Fault(message, "method: autoround, or rtn")


def _width_faults(params: QuantizeAutoround) -> Iterator[Fault]:
    """Bits that a format has no place for, and groups of nothing."""
    if params.group_size == 0:
        yield Fault("group_size: 0 is no group", "give a number of weights that share a scale, or -1 for whole rows")
    if params.bits == "auto":
        if params.layout != MIXED:
            message = f"layout {params.layout} says one width for all layers, and bits: auto gives each its own"
            yield Fault(message, f"layout: {MIXED}, or bits: 4")
    elif params.bits not in WIDTHS[params.layout]:
        has = ", ".join(map(str, WIDTHS[params.layout]))
        ways = " or ".join(f"layout: {name}" for name, widths in WIDTHS.items() if params.bits in widths)
        yield Fault(f"layout {params.layout} has no {params.bits} bits; it has {has}", f"give one of these, or {ways}")


def _zero_faults(params: QuantizeAutoround) -> Iterator[Fault]:
    """Zero points that come back from no file: compressed-tensors 0.20 packs them, and makes no room for packed ones when it loads."""
    if params.layout == "compressed-tensors" and not params.symmetric:
        message = "symmetric: false in layout compressed-tensors is packed in a way that transformers cannot open"
        yield Fault(message, "give symmetric: true, or layout: gptq")


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
        yield Fault(message, ignoring(odd, layers))


def _cautions(artifact: Artifact, params: QuantizeAutoround) -> Iterator[str]:
    widths = widths_in_reach(artifact, LANGUAGE_MODEL, asked(params)) if params.bits == "auto" else (params.bits,)
    if params.layout == MIXED and (rare := [bits for bits in widths if bits not in SERVED]):
        served, listed = " and ".join(map(str, SERVED)), " and ".join(map(str, rare))
        yield f"vLLM and SGLang serve compressed-tensors of {served} bits; whether yours serves {listed} is to be tried"


def _sizes(
    artifact: Artifact, params: QuantizeAutoround, layers: Sequence[Linear], widths: Sequence[int]
) -> Sizes | None:
    """What these layers can take as compressed-tensors packs them: codes in words of 32 bits, scales in float16 whatever the model is in,
    and each layer's shape."""

    def packed(one: Linear, bits: int, item: int) -> int:
        groups = 1 if params.group_size == -1 else one.inputs // params.group_size
        return WORD_BYTES * one.outputs * -(-one.inputs * bits // WORD) + SCALE * one.outputs * groups + SHAPE

    if params.group_size == 0 or any(params.group_size > 0 and one.inputs % params.group_size for one in layers):
        return None  # which is reported
    return packed_sizes(artifact, LANGUAGE_MODEL, layers, widths, packed, loaded_together(layers))


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
    kernels=lambda params: "marlin" if params.bits in (*SERVED, "auto") else "unpacked",
)
def run(artifact: Artifact, params: QuantizeAutoround, context: Context) -> None:
    from compress.opening.full_rows import full_rows

    folder, layers = artifact.folder(LANGUAGE_MODEL), linears(artifact)
    chosen = _wanted(artifact, params, layers)
    be_faultless(_faults(artifact, params, layers, chosen))  # a model of the hub has no headers before it is here
    wanted = {one.name for one in chosen}
    left = [one.name for one in layers if one.name not in wanted and not one.head]
    choice = _choice(artifact, params, chosen) if params.bits == "auto" else None

    @cache
    def ordered() -> Job:
        rows = () if params.method == "rtn" else full_rows(artifact, params.samples, params.length, context)
        return _job(artifact, params, rows, left, choice, context)

    done, job = round_apart(params.layout, ordered, context), ordered()
    made = derive(artifact, context.out, without=rewritten(artifact, (LANGUAGE_MODEL,)), link=context.link)
    write_packing(done.folder, folder, read_json(done.folder / CONFIG)["quantization_config"])
    move_saved(done.folder, folder, made.folder(LANGUAGE_MODEL))
    _check(made, wanted)
    if choice:
        _check_widths(made, choice)
        check_reckoned(made, LANGUAGE_MODEL, size := weight_bytes(made, LANGUAGE_MODEL), choice)
        context.note(f"{widths_text(choice)}, {size / 1e6:.4g} MB", widths=widths_text(choice), bytes=size)
    shutil.rmtree(job.out)
    write_manifest(made.packing(_packing(params)))
    length = len(job.rows[0]) if job.rows else 0
    read = f" on {len(job.rows)} rows of {length} tokens" if job.rows else ""
    context.note(
        f"{params.method} in {widths_text(choice) if choice else f'{params.bits} bits'}{read}; {DECOMPRESSED}",
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
    choice: Choice | None,
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
        bits=min(choice.bits.values()) if choice else int(params.bits),
        own_bits=choice.bits if choice else {},
        **params.model_dump(include={"method", "layout", "group_size", "symmetric", "iters"}),
    )


def _packing(params: QuantizeAutoround) -> dict[str, Quantization]:
    return {
        LANGUAGE_MODEL: Quantization(
            params.layout, MANY if params.bits == "auto" else params.bits, OPENERS[params.layout]
        )
    }


def _choice(artifact: Artifact, params: QuantizeAutoround, layers: Sequence[Linear]) -> Choice:
    """The bits of each layer, within the budget.

    Raises:
        UserError: no choice meets it.
    """
    known = read(artifact)[LANGUAGE_MODEL]
    sizes = _sizes(artifact, params, layers, asked(params).known(known.bits))
    assert sizes is not None  # headers are here by now
    assert params.budget is not None
    together = loaded_together(layers)
    found = share_out(artifact, LANGUAGE_MODEL, sizes, costs_of(known.layers, together), params.budget)
    return replace(found, bits={name: found.bits[key] for key, names in together.items() for name in names})


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


def _check_widths(made: Artifact, choice: Choice) -> None:
    """Raises a StageFailed where the config tells other widths of layers than were chosen."""
    written = bits_by_layer(made.config(LANGUAGE_MODEL))
    if other := sorted(name for name, bits in written.items() if choice.bits.get(name) != bits):
        message = f"auto-round gave {len(other)} layers another width than it was asked for ({other[0]}, …)"
        raise StageFailed(message, fix="leave out bits and budget, and please report this")
