"""Teach a language model under its own rounding, and leave it packed: few bits a weight, chosen by what its teacher says.

Use it where rounding alone costs too much, at 2 and 3 bits above all; it needs text and training, where `quantize.gptq` needs neither.
Each step computes with the weights rounded as they will be stored, by a scale for each `group_size` inputs of a row, and the gradient
goes to the unrounded ones. Rows and losses are those of `distill.logits`. What is saved is compressed-tensors' pack-quantized layout,
the very numbers of the last step's rounding: plain transformers opens it with the library `compressed-tensors`, and vLLM serves it (of a
mixture that is not tried). Levels lie on both sides of zero: packed zero points are not opened by transformers (tried: 5.23 with compressed-tensors 0.20).
transformers turns the weights back into floats when it first runs, so that it is small there, and no faster. The head and the routers of
a mixture stay as they are; its experts lie side by side in one tensor, and are left wide by `ignore: ["*.experts*"]`.
Source: Liu et al., "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models" (2023); Esser et al., "Learned Step Size
Quantization" (2020); the layout, the compressed-tensors library.

    - distill.quantized: {bits: 4, group_size: 16, steps: 400}
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization, derive, rewritten, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import ModelError, Refusal
from compress.model.families import DECODERS, FAMILIES, common_name
from compress.params import Fault
from compress.quantization.linears import (
    Linear,
    be_faultless,
    group_faults,
    ignore_faults,
    left_alone,
    linears,
    named,
    shares,
)
from compress.stages.distill.logits import DistillLogits, rows_of, target, unfit
from compress.stages.distill.logits import forecast as forecast_taught

PACKER = "compressed-tensors"  # the method, and the distribution that opens it


class DistillQuantized(DistillLogits):
    bits: Literal[2, 3, 4, 8] = Field(4, description="of a weight")
    group_size: int = Field(32, ge=-1, description="inputs of a row that share a scale; -1: the whole row")
    scales: Literal["learned", "fixed"] = Field(
        "learned", description="whether scales are taught too, or stay where rounding the untaught weights errs least"
    )
    ignore: tuple[str, ...] = Field(
        (), description="layers that stay as they are, as names, globs (*.o_proj) or re:expressions"
    )
    hidden_weight: float = Field(0.0, ge=0, description="weight of the blocks' hidden states beside the logits'")


def refuse(artifact: Artifact, params: DistillQuantized) -> str:
    if (kind := artifact.components[artifact.main].kind) not in FAMILIES:
        known = ", ".join(dict.fromkeys(common_name(one) for one in FAMILIES if one.endswith(DECODERS)))
        return Refusal(f"it is tried on {known}, and {kind} is none of them", "take quantize.gptq or quantize.nncf")
    layers = _reached(artifact, params)
    if any(one.transposed for one in layers):
        return "compressed-tensors packs linear layers, and this family's are Conv1D, kept as [inputs, outputs]"
    if experts := sorted(
        one.name for one in layers if one.expert
    ):  # a checkpoint may have them one by one, its class has not
        return f'experts side by side in one tensor cannot be packed ({experts[0]}): name them under `ignore`: ["*.experts*"]'
    if params.group_size == 0:
        return "group_size: 0 is none; -1 gives each row one scale"
    if linears(artifact) and not layers:
        return "`ignore` names every linear layer, and nothing would be packed"
    return ""


def forecast(artifact: Artifact, params: DistillQuantized) -> Forecast:
    be_faultless(_faults(artifact, params))
    found = forecast_taught(artifact, params)
    packed = Quantization(PACKER, params.bits, PACKER)
    return replace(found, quantization={LANGUAGE_MODEL: packed}, reported=_reported(artifact, params))


@stage(
    version=1,
    params=DistillQuantized,
    needs=("language_model",),
    formats={"torch": "torch"},
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),
    data=lambda params: ("train",),
    inputs=("teacher",),
    libraries=("accelerate", "compressed-tensors", "torch", "transformers"),
    extra="compressed-tensors",
    refuse=refuse,
    forecast=forecast,
    unfit=unfit,
    kernels=lambda params: "marlin" if params.bits in (4, 8) else "unpacked",
)
def run(artifact: Artifact, params: DistillQuantized, context: Context) -> None:
    from compress.algorithms.grids import Grid
    from compress.engines.torch.runtime import save_component, stored_dtype
    from compress.opening import open_language
    from compress.training.loop import teach
    from compress.training.packing import pack, round_layers, tell_packing

    be_faultless(_faults(artifact, params))  # a model of the hub has no headers before it is here
    source = context.inputs["teacher"]
    if source.components[LANGUAGE_MODEL].format != "torch":
        raise ModelError("the teacher is an engine", place=str(source.path), fix="name an earlier step")
    teacher, task = (open_language(side, context.opening.of("float32")) for side in (source, artifact))
    rows = rows_of(task, params, context)
    grid = Grid(params.bits, params.group_size)
    names = [one.name for one in _reached(artifact, params)]
    if not names:
        raise ModelError(
            "has no linear layers that can be packed", place=str(artifact.path), fix="leave this stage out"
        )
    stored = stored_dtype(artifact.folder(LANGUAGE_MODEL))
    round_layers(task.model, names, grid, stored, params.scales == "learned")
    learner, loss_at = target(task, teacher, rows, params, context)
    curve = teach(learner, loss_at, params, context)
    record = pack(task.model, grid)
    made = derive(artifact, context.out, without=rewritten(artifact, (LANGUAGE_MODEL,)), link=context.link)
    # transformers does not put experts together that lie one by one beside packed layers (tried: 5.23).
    mixture = any(one.expert for one in linears(artifact))
    save_component(task.model, artifact.path, made.path, as_built=mixture)
    tell_packing(record, made.folder(LANGUAGE_MODEL))
    write_manifest(made.packing({LANGUAGE_MODEL: Quantization(PACKER, params.bits, PACKER)}))
    seen = params.steps * params.accumulate * params.batch * rows.tokens.shape[1]
    message = f"loss {curve[0][1]:.4g} → {curve[-1][1]:.4g} over {seen} tokens{rows.share}, {len(names)} layers at {params.bits} bits"
    context.note(message, loss=curve, tokens_seen=seen)


def _faults(artifact: Artifact, params: DistillQuantized) -> tuple[Fault, ...]:
    layers = ignore_faults(linears(artifact), params.ignore)
    return (*layers, *group_faults(_reached(artifact, params), params.group_size))


def _left(artifact: Artifact, params: DistillQuantized) -> frozenset[str]:
    kind = artifact.components[LANGUAGE_MODEL].kind
    return named(linears(artifact), (*left_alone(kind), *params.ignore))


def _reached(artifact: Artifact, params: DistillQuantized) -> tuple[Linear, ...]:
    """The layers that are rounded and packed; () where they are not known yet."""
    left = _left(artifact, params)
    return tuple(one for one in linears(artifact) if one.name not in left)


def _reported(artifact: Artifact, params: DistillQuantized) -> str:
    layers = linears(artifact)
    if not layers:
        return ""
    share = shares(layers, _left(artifact, params))
    groups = "with a scale a row" if params.group_size == -1 else f"in groups of {params.group_size}"
    return f"{params.bits} bits for {share:.0%} of the linear layers' weights, {groups}"
