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
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.engines.openvino import MODEL
from compress.errors import Refusal, StageFailed
from compress.model.bit_widths import packing
from compress.params import Later, Params, Share
from compress.quantization.budgets import unreadable
from compress.quantization.patterns import expression_faults
from compress.quantization.sensitivity import STAGE, measured, stale

if TYPE_CHECKING:
    import openvino

    from compress.engines.openvino.choice import Chosen
    from compress.engines.openvino.quantize import Compression


CALIBRATED = ("int8", "int8_hybrid")
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
RECKONED = 0.005  # of the weights, that NNCF may take otherwise
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
    budget: Annotated[Share | str | None, Later()] = Field(
        None,
        description="bytes of a component's weights with bits: auto: a share of what they take now, or a size such as 120 MB",
    )

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
    whys = [*_unavailable(artifact, params), *_unchosen(artifact, wanted, params), *_unnamed(artifact, wanted, params)]
    return "; ".join(whys)


def _unavailable(artifact: Artifact, params: QuantizeNNCF) -> Iterator[str]:
    """What is asked for that the mode has no use for."""
    four = params.mode == "int4_weights"
    if params.corrections and not four:
        yield f"corrections make up for 4 bits, and the mode is {params.mode}: leave them out, or give int4_weights"
    if params.metric != WEIGHTS_ALONE and not (four and params.ratio < 1):
        yield "metric chooses the layers that a ratio below 1 of int4_weights leaves 8 bits, and there are none: leave it out"
    if params.smooth != 0.95 and params.mode != "int8":
        yield f"smooth is for int8, and the mode is {params.mode}: leave it out"
    if params.mode == "int8_hybrid" and artifact.writes_text:
        yield "int8_hybrid is for convolutions, of which a language model has none: give int8 or int8_weights"


def _unchosen(artifact: Artifact, wanted: tuple[str, ...], params: QuantizeNNCF) -> Iterator[str]:
    """Why widths cannot be chosen by a budget."""
    if (params.bits is None) != (params.budget is None):
        yield "bits: auto and budget go together: give both, or neither"
        return
    if params.budget is None:
        return
    if params.mode != "int4_weights" or params.ratio < 1:
        yield "bits: auto chooses between 4 and 8 bits of weights: give mode: int4_weights, and no ratio"
    if isinstance(params.budget, str) and (why := unreadable(params.budget)):
        yield f"budget: {why}"
    for name in wanted:
        if why := stale(artifact, name):
            yield why
        elif (made := measured(artifact, name)) and not {*WIDTHS} <= {*made.params["bits"]}:
            tried = ", ".join(map(str, made.params["bits"]))
            yield f"{STAGE} measured {tried} bits of `{name}`, and a budget needs 8 and 4"


def _unnamed(artifact: Artifact, wanted: tuple[str, ...], params: QuantizeNNCF) -> Iterator[str]:
    """Patterns that are none, and those that name no layer where the graph is there already; of one that is still to be built, or whose
    layers `analyze.sensitivity` knows by torch's names, its work shows it."""
    by_torch = STAGE in {made.stage for made in artifact.lineage}
    graphs = [f for name in wanted if ((f := artifact.folder(name)) / MODEL).is_file()] if not by_torch else []
    if not params.ignore or not graphs:
        yield from (f"{one.message}: {one.fix}" for one in expression_faults(params.ignore))
        return
    from compress.engines.openvino.choice import graph_faults

    found = (fault for folder in graphs for fault in graph_faults(folder, params.ignore))
    yield from dict.fromkeys(f"{one.message}: {one.fix}" for one in found)


def forecast(artifact: Artifact, params: QuantizeNNCF) -> Forecast:
    packed = packing(_wanted(artifact, params), "openvino", params.mode)
    reported = f"4 or 8 bits a layer, within a budget of {params.budget}" if params.bits else ""
    return Forecast(quantization=packed, reported=reported)


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

    size = (made.folder(name) / WEIGHTS).stat().st_size
    if abs(size - work.chosen.size) > RECKONED * work.chosen.size:
        message = (
            f"the weights of `{name}` take {size / 1e6:.4g} MB, where {work.chosen.size / 1e6:.4g} MB were reckoned"
        )
        raise StageFailed(message, place=str(made.folder(name)), fix="leave out bits and budget, and report this")
    reported = ", ".join(f"{count} layers in {bits} bits" for bits, count in work.chosen.counts.items())
    context.note(f"{name}: {reported}, {size / 1e6:.4g} MB", component=name, widths=reported, bytes=size)


def _wanted(artifact: Artifact, params: QuantizeNNCF) -> tuple[str, ...]:
    return artifact.choose(params.components, bool)


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
