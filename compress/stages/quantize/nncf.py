"""Quantize engines to 8 or 4 bits, on the engine's own graph.

Use `int8` after `build.openvino` for images: activations too are 8 bits wide, so the arithmetic itself gets faster. Its
ranges are read while the pipeline generates the calibration prompts with its own steps and guidance, so every timestep is seen.
Use `int8_weights` or `int4_weights` for language models, whose decoding waits for weights from memory.
Source: NNCF; Nagel et al., "A White Paper on Neural Network Quantization" (2021).

    - build.openvino: {}
    - quantize.nncf: {mode: int8, samples: 64}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import StageFailed
from compress.model.bit_widths import packing
from compress.params import Params

if TYPE_CHECKING:
    import openvino


class QuantizeNNCF(Params):
    mode: Literal["int8", "int8_weights", "int4_weights"] = Field(
        "int8", description="int8: weights and activations; the others: weights alone"
    )
    samples: int = Field(64, ge=1, le=2000, description="calls to the component that int8 is calibrated on")
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


def refuse(artifact: Artifact, params: QuantizeNNCF) -> str:
    wanted = _wanted(artifact, params)
    unknown = [name for name in wanted if name not in artifact.components]
    if unknown:
        return f"the model has no component {', '.join(unknown)}; it has {', '.join(artifact.components)}"
    other = [name for name in wanted if artifact.components[name].format != "openvino"]
    return f"{', '.join(other)} is no OpenVINO engine: put build.openvino before it" if other else ""


def forecast(artifact: Artifact, params: QuantizeNNCF) -> Forecast:
    return Forecast(quantization=packing(_wanted(artifact, params), "openvino", params.mode))


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
    data=lambda params: ("calibration",) if params.mode == "int8" else (),
)
def run(artifact: Artifact, params: QuantizeNNCF, context: Context) -> None:
    from compress.engines.module import ENGINE
    from compress.engines.openvino.quantize import count_quantized, read_graph, write_graph
    from compress.engines.openvino.runtime import FILES

    wanted = _wanted(artifact, params)
    parts = [str((artifact.folder(n) / f).relative_to(artifact.path)) for n in wanted for f in FILES]
    made = derive(artifact, context.out, without=tuple(parts), link=context.link)
    feeds = _record(artifact, wanted, params, context) if params.mode == "int8" else {}
    for name in context.progress(wanted, "components", len(wanted)):
        model = read_graph(artifact.folder(name))
        before = count_quantized(model)
        model = _quantize(model, feeds.get(name, []), params)
        counts = count_quantized(model) - before
        if not counts:
            raise StageFailed(
                f"{params.mode} changed no operation of `{name}`",
                place=str(artifact.folder(name)),
                fix="choose another mode, or take this component out",
            )
        write_graph(model, made.folder(name), (artifact.folder(name) / ENGINE).read_bytes())
        context.note(f"{name} is quantized to {params.mode}", component=name, calls=len(feeds.get(name, [])), **counts)
    write_manifest(made.packing(packing(wanted, "openvino", params.mode)))


def _wanted(artifact: Artifact, params: QuantizeNNCF) -> tuple[str, ...]:
    return artifact.choose(params.components, bool)


def _quantize(model: openvino.Model, feeds: list[Any], params: QuantizeNNCF) -> Any:
    from compress.engines.openvino.quantize import compress_weights, quantize_activations

    if params.mode == "int8":
        return quantize_activations(model, feeds)
    bits = 4 if params.mode == "int4_weights" else 8
    return compress_weights(model, bits, params.group_size, params.symmetric, params.ratio)


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
