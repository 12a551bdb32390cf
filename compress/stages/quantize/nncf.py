"""Quantize engines to 8 or 4 bits, on the engine's own graph.

Use `int8` after `build.openvino` for images: activations too are 8 bits wide, so the arithmetic itself gets faster. Its
ranges are read while the pipeline generates the calibration prompts with its own steps and guidance, so every timestep is seen.
`int8_hybrid` does that to convolutions and leaves linear layers their activations, which outliers spoil most. Use `int8_weights` or
`int4_weights` for language models, whose decoding waits for weights from memory; `corrections` make up for rounding on calibration
data, and `bits: auto` gives each layer 4 or 8 bits within a `budget`, by what `analyze.sensitivity` measured. `ignore` names layers by
the graph (`linear_0`, `convolution_*`), and as torch does where `analyze.sensitivity` went before.
Source: NNCF; Nagel et al., "A White Paper on Neural Network Quantization" (2021); Xiao et al., "SmoothQuant" (2022); Lin et al., "AWQ"
(2023); Frantar et al., "GPTQ" (2022); optimum-intel, hybrid quantization of diffusion models.

    - build.openvino: {}
    - quantize.nncf: {mode: int8, samples: 64}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.engines.openvino import MODEL
from compress.errors import Refusal, StageFailed
from compress.model.bit_widths import packing
from compress.params import Fault, Later, Params, Share, unused_faults
from compress.quantization.automatic import (
    LISTED,
    Asked,
    Sizes,
    automatic_faults,
    check_reckoned,
    rounding_cautions,
    widths_text,
)
from compress.quantization.engine_sizes import Grid, planned_sizes
from compress.quantization.linears import be_faultless
from compress.quantization.patterns import EXPRESSION, expression_faults
from compress.quantization.sensitivity import STAGE

if TYPE_CHECKING:
    import openvino

    from compress.engines.openvino.choice import Chosen
    from compress.engines.openvino.quantize import Compression


CALIBRATED = ("int8", "int8_hybrid")
FOUR, WEIGHTS_MODES = ("int4_weights",), ("int8_weights", "int4_weights")
USED = {  # by which modes
    "samples": (*CALIBRATED, *FOUR),
    "symmetric": WEIGHTS_MODES,
    "smooth": ("int8",),
    **dict.fromkeys(("group_size", "ratio", "corrections", "metric", "bits", "budget"), FOUR),
}
# NNCF's lora_correction is left out: it fails on embeddings in 4 bits (3.4.0).
Correction = Literal["awq", "scale_estimation", "gptq"]
Metric = Literal[
    "weight_quantization_error",
    "hessian_input_activation",
    "mean_activation_variance",
    "max_activation_variance",
    "mean_activation_magnitude",
]
WEIGHTS_ALONE: Final = "weight_quantization_error"
WIDTHS = (8, 4)  # that a budget is shared out in


class QuantizeNNCF(Params):
    mode: Literal["int8", "int8_hybrid", "int8_weights", "int4_weights"] = Field(
        "int8",
        description="int8: weights and activations; int8_hybrid: those of convolutions, elsewhere weights; the others: weights alone",
    )
    samples: int = Field(64, ge=1, le=2000, description="calls to the component that it is calibrated on")
    components: tuple[str, ...] = Field(
        (), description="which engines; none named: the denoiser, or the language model"
    )
    group_size: int = Field(
        64, ge=8, description="weights that share a scale in int4, snapped to a divisor of each layer"
    )
    symmetric: bool = Field(False, description="whether weights-only codes lie symmetrically around zero")
    ratio: float = Field(
        1.0, gt=0, le=1, description="share of the weights that int4 makes 4 bits wide; the rest get 8"
    )
    ignore: Annotated[tuple[str, ...], Later()] = Field(
        (), description="layers that stay as they are: patterns such as linear_0 or convolution_*"
    )
    smooth: Annotated[float | None, Later()] = Field(
        0.95, ge=0, le=1, description="SmoothQuant's alpha in int8: outliers that weights take over; null: none"
    )
    corrections: Annotated[tuple[Correction, ...], Later()] = Field(
        (), description="what makes up for rounding to 4 bits, on calibration data"
    )
    metric: Annotated[Metric, Later()] = Field(
        WEIGHTS_ALONE,
        description="what tells which layers a ratio below 1 leaves 8 bits; all but the first need calibration data",
    )
    bits: Annotated[Literal["auto"] | None, Later()] = Field(
        None, description="auto: 4 or 8 bits a layer, by what analyze.sensitivity measured, within the budget"
    )
    budget: Annotated[Share | str | None, Later()] = Field(None, description=LISTED)

    @property
    def calibrated(self) -> bool:
        """Whether it looks at calls."""
        return self.mode in CALIBRATED or bool(self.corrections) or (self.ratio < 1 and self.metric != WEIGHTS_ALONE)


def refuse(artifact: Artifact, params: QuantizeNNCF) -> str:
    wanted = _wanted(artifact, params)
    unknown = [name for name in wanted if name not in artifact.components]
    if unknown:
        return Refusal(f"the model has no component {', '.join(unknown)}", f"it has {', '.join(artifact.components)}")
    other = [name for name in wanted if artifact.components[name].format != "openvino"]
    if other:
        return Refusal(f"{', '.join(other)} is no OpenVINO engine", "put build.openvino before it")
    return ""


def _faults(artifact: Artifact, params: QuantizeNNCF) -> Iterator[Fault]:
    """All that keeps it from working on these engines."""
    wanted = _wanted(artifact, params)
    yield from unused_faults(params, "mode", USED)
    yield from _pointless(artifact, params)
    if params.mode == "int4_weights":
        yield from automatic_faults(artifact, wanted, asked(params), partial(_sizes, artifact, params))
    yield from _unnamed(artifact, wanted, params)


def _pointless(artifact: Artifact, params: QuantizeNNCF) -> Iterator[Fault]:
    """What is asked for that the mode has no use for, beside what it never has one for."""
    four, given = params.mode == "int4_weights", params.model_fields_set
    if four and "samples" in given and not params.calibrated:
        message = "samples is for calls that corrections look at, or another metric, and there are none of either"
        yield Fault(message, "leave samples out")
    if four and params.metric != WEIGHTS_ALONE and params.ratio == 1:
        message = "metric chooses the layers that a ratio below 1 leaves 8 bits, and there are none"
        yield Fault(message, "leave metric out, or give ratio: 0.8")
    if four and params.bits == "auto" and "ratio" in given:
        yield Fault("bits: auto chooses which layers get 4 bits, and so does ratio", "leave ratio out")
    if params.mode == "int8_hybrid" and artifact.writes_text:
        message = "int8_hybrid is for convolutions, of which a language model has none"
        yield Fault(message, "mode: int8, or mode: int8_weights")


def asked(params: QuantizeNNCF) -> Asked:
    """What is asked for, where the widths are chosen."""
    return Asked(params.bits == "auto", params.budget, WIDTHS, params.symmetric, params.group_size)


def _sizes(artifact: Artifact, params: QuantizeNNCF, name: str, widths: tuple[int, ...]) -> Sizes | None:
    """What an engine's weights can take: one that is there already, or that is still to be built."""
    folder, grid = artifact.folder(name), Grid(params.group_size, params.symmetric)
    if not (folder / MODEL).is_file():
        return planned_sizes(artifact, name, grid, params.ignore)
    if params.ignore:
        return None  # by torch's names too, which the weights alone tell
    from compress.engines.openvino.sizes import graph_sizes

    return graph_sizes(folder, grid)


def _unnamed(artifact: Artifact, wanted: tuple[str, ...], params: QuantizeNNCF) -> Iterator[Fault]:
    """Patterns that are none, and those that name no layer where the graph is there already; of one that is still to be built, those that
    are in torch's way, by which layers go where `analyze.sensitivity` went before, and then its work shows it."""
    by_torch = STAGE in {made.stage for made in artifact.lineage}
    graphs = [f for name in wanted if ((f := artifact.folder(name)) / MODEL).is_file()] if not by_torch else []
    if not params.ignore or not graphs:
        yield from expression_faults(params.ignore)
        for pattern in params.ignore if not by_torch else ():
            if "." in pattern and not pattern.startswith(EXPRESSION):
                message = f"ignore: `{pattern}` is as torch calls layers, and the graph calls them linear_0, convolution_1 and the like"
                yield Fault(
                    message, f"put {STAGE} in front of the engine, which keeps torch's names, or name the graph's own"
                )
        return
    from compress.engines.openvino.choice import graph_faults

    yield from dict.fromkeys(fault for folder in graphs for fault in graph_faults(folder, params.ignore))


def forecast(artifact: Artifact, params: QuantizeNNCF) -> Forecast:
    """All that does not go together is raised at once."""
    be_faultless(_faults(artifact, params))
    wanted = _wanted(artifact, params)
    widths = f"4 or 8 bits a layer, within a budget of {params.budget}" if params.bits else params.mode
    left = f", but for {', '.join(params.ignore)}" if params.ignore else ""
    reported = f"{', '.join(wanted)}: {widths}, of all layers with weights{left}"
    packed = packing(wanted, "openvino", params.mode)
    cautions = tuple(rounding_cautions(artifact, wanted, asked(params)))
    return Forecast(quantization=packed, reported=reported, warnings=cautions)


@stage(
    version=4,
    params=QuantizeNNCF,
    formats={"openvino": "openvino"},
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),  # in int8, weights use half their range where products of bytes overflow
    libraries=("nncf", "openvino", "transformers", "diffusers"),
    refuse=refuse,
    forecast=forecast,
    data=lambda params: ("calibration",) if params.calibrated else (),
)
def run(artifact: Artifact, params: QuantizeNNCF, context: Context) -> None:
    from compress.engines.module import ENGINE
    from compress.engines.openvino.quantize import count_quantized, read_graph, write_graph
    from compress.engines.openvino.runtime import FILES

    wanted = _wanted(artifact, params)
    parts = [str((artifact.folder(n) / f).relative_to(artifact.path)) for n in wanted for f in FILES]
    made = derive(artifact, context.out, without=tuple(parts), link=context.link)
    todo = {name: _work(artifact, name, params) for name in wanted}
    feeds = _record(artifact, wanted, params, context) if params.calibrated else {}
    for name in context.progress(wanted, "components", len(wanted)):
        model = read_graph(artifact.folder(name))
        before = count_quantized(model)
        model = _quantize(model, feeds.get(name, []), params, todo[name])
        counts = count_quantized(model) - before
        if not counts:
            raise StageFailed(
                f"{params.mode} changed no operation of `{name}`",
                place=str(artifact.folder(name)),
                fix="choose another mode, or take this component out",
            )
        write_graph(model, made.folder(name), (artifact.folder(name) / ENGINE).read_bytes())
        context.note(f"{name} is quantized to {params.mode}", component=name, calls=len(feeds.get(name, [])), **counts)
        _tell_choice(made, name, todo[name], context)
    write_manifest(made.packing(packing(wanted, "openvino", params.mode)))


@dataclass(frozen=True)
class Work:
    """What is to be done to one graph. hybrid: its convolutions, and its other layers."""

    how: Compression
    ignored: tuple[str, ...]
    hybrid: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    chosen: Chosen | None = None


def _work(artifact: Artifact, name: str, params: QuantizeNNCF) -> Work:
    """Everything that can be known before a call is recorded, for a mistake costs least here."""
    from compress.engines.openvino.choice import choose_widths, ignored_layers
    from compress.engines.openvino.layers import layers
    from compress.engines.openvino.quantize import Compression

    left = ignored_layers(artifact, name, params.ignore)
    ignored = tuple(node for layer in left for node in layer.nodes)
    four = params.mode == "int4_weights"
    metric = "" if params.metric == WEIGHTS_ALONE else params.metric
    plain = 4 if four else 8, params.group_size, params.symmetric, params.ratio, metric
    how = Compression(*plain, ignored=tuple(sorted(ignored)), corrections=params.corrections)
    if params.budget is not None:
        chosen = choose_widths(artifact, name, params.budget, how, left)
        return Work(replace(how, wide=chosen.wide), how.ignored, chosen=chosen)
    if params.mode != "int8_hybrid":
        return Work(how, how.ignored)
    kinds = {True: list[str](), False: list[str]()}
    for layer in layers(artifact.folder(name)):
        if layer not in left:
            kinds[layer.convolves] += layer.nodes
    return Work(how, how.ignored, (tuple(kinds[True]), tuple(kinds[False])))


def _tell_choice(made: Artifact, name: str, work: Work, context: Context) -> None:
    """Say how a budget was shared out.

    Raises:
        StageFailed: the weights take something else than was reckoned.
    """
    if work.chosen is None:
        return
    from compress.engines.openvino import WEIGHTS

    size, choice = (made.folder(name) / WEIGHTS).stat().st_size, work.chosen.choice
    check_reckoned(made, name, size, choice)
    context.note(
        f"{name}: {widths_text(choice)}, {size / 1e6:.4g} MB", component=name, widths=widths_text(choice), bytes=size
    )


def _wanted(artifact: Artifact, params: QuantizeNNCF) -> tuple[str, ...]:
    return artifact.choose(params.components, lambda format: format == "openvino") or (artifact.main,)


def _quantize(model: openvino.Model, feeds: list[Any], params: QuantizeNNCF, work: Work) -> Any:
    from compress.engines.openvino.quantize import compress_weights, quantize_activations, quantize_hybrid

    if params.mode == "int8":
        return quantize_activations(model, feeds, smooth=params.smooth, ignored=work.ignored)
    if params.mode == "int8_hybrid":
        convolutions, others = work.hybrid
        return quantize_hybrid(model, feeds, convolutions=convolutions, others=others, ignored=work.ignored)
    return compress_weights(model, work.how, feeds)


def _record(
    artifact: Artifact, wanted: tuple[str, ...], params: QuantizeNNCF, context: Context
) -> dict[str, list[Any]]:
    """Each component's real inputs while the artifact is used on the calibration data as it is meant to be."""
    from compress.algorithms.tensors import to_array
    from compress.building.build import calibration_calls, text_calls
    from compress.engines.openvino.runtime import start_of_text
    from compress.opening import open_language, open_task

    if not artifact.writes_text:
        recorded = calibration_calls(open_task(artifact, context.opening), wanted, params.samples, context)
        return {name: [{n: to_array(v) for n, v in feed.items()} for feed in feeds] for name, feeds in recorded.items()}
    task = open_language(artifact, context.opening)
    graph = task.model.decoder.graph
    texts = text_calls(task, params.samples, context)
    return {artifact.main: [start_of_text(text["input_ids"][0].tolist(), graph) for text in texts]}
