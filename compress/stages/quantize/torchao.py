"""Pack the linear layers of a language model, a denoiser, text encoders or a VAE into 8 or 4 bits with torchao, without any data.

Use it where a model of transformers or diffusers must get smaller and stay one: plain `from_pretrained` opens what it leaves, wherever
torchao is installed; diffusers needs the `torch_dtype` that the model had as an argument. `int8_weights` keeps rows of weights in 8 bits;
`int8_dynamic` rounds each token's activations too, and computes in integers. On a processor neither need be faster: measure. On NVIDIA
GPUs there are also `int4_weights` (bfloat16 models, from SM80) and `float8` (each row of weights and activations with a scale of its own,
from SM89). Embeddings, heads, convolutions and what `ignore:` names stay as they are (`*.proj_out`, `re:.*proj`); the plan says what share
is reached. `bits: auto` packs the layers that bear it best, by what `analyze.sensitivity` measured, until all weights take `budget`, and leaves
the others as they are. torchao's int2 to int7 store bytes, which saves nothing, and are left out. Put it behind everything that changes weights.
Source: torchao.

    - quantize.torchao: {mode: int8_weights}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from compress.artifact import Artifact, Quantization, adapted
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import Refusal, UserError
from compress.params import Fault, Later, Params, Share, unused_faults
from compress.quantization.automatic import (
    LISTED,
    Asked,
    Sizes,
    Sizing,
    automatic_faults,
    check_reckoned,
    rounding_cautions,
    share_out,
    widths_text,
)
from compress.quantization.budgets import Choice, bytes_of
from compress.quantization.linears import Linear, be_faultless
from compress.quantization.packed_places import FLOAT8, INT4, abilities, needs_bfloat16, why_not_there
from compress.quantization.packed_sizes import costs_of, packed_sizes, weight_bytes
from compress.quantization.reach import Packer, model_library, packing_forecast, reach, refuse_reach
from compress.quantization.sensitivity import read
from compress.quantization.sizes import number_bytes
from compress.quantizers.packers import pack_all

TORCHAO = Packer("torchao", takes_transposed=False, unpacks_called=True)
LEAST = {"int4_weights": INT4, "float8": FLOAT8}  # by mode, the compute capability that it takes
Mode = Literal["int8_weights", "int8_dynamic", "int4_weights", "float8"]
INTEGERS = ("int8_weights", "int8_dynamic", "int4_weights")  # modes whose rounding analyze.sensitivity measures
USED = {"group_size": ("int4_weights",), "bits": INTEGERS, "budget": INTEGERS}  # by which modes
BYTE = 8
TILE_IN, TILE_OUT, PAIR = 1024, 8, 4  # what int4 is padded to, and bytes of a group's scale and zero point


class QuantizeTorchao(Params):
    mode: Mode = Field(
        "int8_weights", description="what is narrow: weights, or activations too; the last two need a GPU"
    )
    components: tuple[str, ...] | Literal["all"] = Field(
        (), description="what to pack; none named: the denoiser, or the language model; all: text encoders and VAE too"
    )
    ignore: tuple[str, ...] = Field((), description="layers that stay as they are, by name or pattern")
    group_size: Literal[32, 64, 128, 256] = Field(128, description="in int4: weights of a row that share a scale")
    bits: Annotated[Literal["auto"] | None, Later()] = Field(
        None,
        description="auto: which layers are packed is chosen by what analyze.sensitivity measured, within the budget",
    )
    budget: Annotated[Share | str | None, Later()] = Field(None, description=LISTED)


def refuse(artifact: Artifact, params: QuantizeTorchao) -> str:
    if params.mode in LEAST and (why := needs_bfloat16(artifact, params.mode)):
        return why
    if not params.mode.startswith("int8") and (kept := adapted(artifact, wanted(artifact, params))):
        message = f"peft lays adapters on torchao's int8 weights alone, and {kept} is kept beside the model"
        return Refusal(message, "mode: int8_weights; or leave out fuse: false of the adapter")
    return refuse_reach(artifact, wanted(artifact, params), params.ignore, TORCHAO)


def misplaced(artifact: Artifact, params: QuantizeTorchao, device: str) -> str:
    why = why_not_there(LEAST.get(params.mode, 0), device)
    return f"{params.mode}: {why}" if why else ""


def forecast(artifact: Artifact, params: QuantizeTorchao) -> Forecast:
    names = wanted(artifact, params)
    be_faultless(_faults(artifact, params, names))
    group = params.group_size if params.mode == "int4_weights" else 0
    made = packing_forecast(artifact, names, params.ignore, packing(params), params.mode, group)
    if params.bits is None:
        return made
    reported = f"{made.reported}, or fewer, within a budget of {params.budget}"
    return replace(made, reported=reported, warnings=tuple(rounding_cautions(artifact, names, asked(params))))


def _faults(artifact: Artifact, params: QuantizeTorchao, names: tuple[str, ...]) -> Iterator[Fault]:
    """What does not go together, beside what packing_forecast raises."""
    yield from unused_faults(params, "mode", USED)
    if params.mode in INTEGERS:
        sizes = partial(_sizes, artifact, params)
        found = [*automatic_faults(artifact, names, asked(params), sizes), *_other_numbers(artifact, names, params)]
        yield from found or (_all_left(names, params, sizes) if params.budget is not None else ())


def _other_numbers(artifact: Artifact, names: Iterable[str], params: QuantizeTorchao) -> Iterator[Fault]:
    """Components that are opened and saved in wider or narrower numbers than they are stored in, which a budget is reckoned by."""
    main = number_bytes(artifact, artifact.main)
    for name in names if params.budget is not None else ():
        if number_bytes(artifact, name) != main:
            message = (
                f"bits: auto: `{name}` is stored in other numbers than `{artifact.main}`, in which a pipeline is opened"
            )
            yield Fault(message, "save the pipeline in one number type, or leave bits and budget out")


def _all_left(names: Iterable[str], params: QuantizeTorchao, sizing: Sizing) -> Iterator[Fault]:
    """Components whose every layer would stay as it is, for the budget has room for that."""
    for name in names:
        sizes = sizing(name, asked(params).widths)
        if sizes and params.budget is not None and bytes_of(params.budget, sizes.whole) >= sizes.most:
            message = f"`{name}`: the budget has room for every layer as it is, {sizes.most / 1e6:.4g} MB"
            yield Fault(message, "give a smaller one, or leave this stage out")


def asked(params: QuantizeTorchao) -> Asked:
    """What is asked for, where the layers that are packed are chosen. Int8 is symmetric, and int4 is not."""
    four = params.mode == "int4_weights"
    group = params.group_size if four else None
    return Asked(params.bits == "auto", params.budget, (packing(params).bits,), not four, group)


def _sizes(artifact: Artifact, params: QuantizeTorchao, name: str, widths: tuple[int, ...]) -> Sizes | None:
    """What a component's layers can take, packed, or as wide as they are."""

    def packed(one: Linear, bits: int, item: int) -> int:
        if bits > BYTE:
            return one.weights * item
        if bits == BYTE:
            return one.weights + item * one.outputs
        inputs, outputs = (-(-size // unit) * unit for size, unit in ((one.inputs, TILE_IN), (one.outputs, TILE_OUT)))
        return inputs * outputs // 2 + PAIR * outputs * (inputs // params.group_size)

    layers = reach(artifact, name, params.ignore).packed
    return packed_sizes(artifact, name, layers, widths, packed, _together(artifact, name, layers), unpacked=True)


def _together(artifact: Artifact, name: str, layers: Sequence[Linear]) -> dict[str, tuple[str, ...]]:
    """The layers that are left together, by one of them: diffusers leaves whatever has the name of one that is left anywhere in its own."""
    alone: dict[str, tuple[str, ...]] = {one.name: (one.name,) for one in layers}
    if model_library(artifact, name) != "diffusers":
        return alone
    found: dict[str, tuple[str, ...]] = {}
    for one in sorted(alone, key=len):
        within = next((key for key in found if f"{key}." in f"{one}."), one)
        found[within] = (*found.get(within, ()), one)
    return found


@stage(
    version=1,
    params=QuantizeTorchao,
    formats={"torch": "torch"},
    effects=("weights",),
    carries=True,
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
        with silent_libraries(diffusers=True):  # importing them looks for native code, and says so
            return config_of(artifact, name, left, params)

    names = wanted(artifact, params)
    choices = {name: _choice(artifact, name, params) for name in names} if params.bits else {}
    left = {n: tuple(one for one, bits in choice.bits.items() if bits > BYTE) for n, choice in choices.items()}
    pack_all(artifact, names, params.ignore, config, packing(params), context, left)
    made = replace(artifact, path=context.out)
    for name, choice in choices.items():
        check_reckoned(made, name, size := weight_bytes(made, name), choice)
        context.note(
            f"{name}: {widths_text(choice)}, {size / 1e6:.4g} MB",
            component=name,
            widths=widths_text(choice),
            bytes=size,
        )


def _choice(artifact: Artifact, name: str, params: QuantizeTorchao) -> Choice:
    """The layers of a component that are packed, and those that are left, within the budget.

    Raises:
        UserError: no choice meets it.
    """
    sizes, known = _sizes(artifact, params, name, asked(params).widths), read(artifact)[name]
    assert sizes is not None  # headers are here by now
    assert params.budget is not None
    together = _together(artifact, name, reach(artifact, name, params.ignore).packed)
    measured = costs_of(known.layers, together)
    costs = {key: {**dict.fromkeys(sizes.layers[key], 0.0), **cost} for key, cost in measured.items()}
    found = share_out(artifact, name, sizes, costs, params.budget)
    if min(found.bits.values()) > BYTE:
        message = f"`{name}`: the budget leaves every layer as it is"
        raise UserError(message, place=str(artifact.path), fix="give a smaller one, or leave this stage out")
    return replace(found, bits={one: bits for key, bits in found.bits.items() for one in together[key]})


def wanted(artifact: Artifact, params: QuantizeTorchao) -> tuple[str, ...]:
    return artifact.choose(params.components, lambda format: format == "torch")


def packing(params: QuantizeTorchao) -> Quantization:
    return Quantization("torchao", 4 if params.mode == "int4_weights" else 8, "torchao")


def config_of(artifact: Artifact, name: str, left: tuple[str, ...], params: QuantizeTorchao) -> Any:
    """The config that the component's own library is given."""
    import diffusers
    import transformers

    library: Any = diffusers if model_library(artifact, name) == "diffusers" else transformers
    return library.TorchAoConfig(torchao_config(params), modules_to_not_convert=list(left))


def torchao_config(params: QuantizeTorchao) -> Any:
    """torchao's own config of a mode. Its habit of setting the compiler of the whole process is turned off."""
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
    return how[params.mode]()
