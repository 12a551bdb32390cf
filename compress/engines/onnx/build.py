"""Torch to ONNX, through the dynamo exporter of transformers: batch and text lengths stay open, weights lie beside the graph."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir
import onnxruntime
import torch
from onnxscript.rewriter.rules.common._no_op import rules as NO_OPERATIONS
from transformers import Cache
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from compress.algorithms.tensors import moved, to_array
from compress.engines.builder import Builder, Example, Feed, positions_of
from compress.engines.module import write_settings
from compress.engines.onnx import GRAPH, WEIGHTS
from compress.engines.onnx.quantize import compress_weights, quantize_activations, quantize_while_running
from compress.engines.onnx.runtime import CACHE_IN, CACHE_OUT
from compress.engines.tracing import Narrowed, Traced, decoding_step, narrowed, quiet_export
from compress.machine.devices import AS_STORED, CPU, Opening

Fusions = Literal["cpu", "cuda"] | None  # into operators that only ONNX Runtime knows


HALF = "float16"


class OnnxBuilder(Builder):
    """Graphs in float32, or in float16 as torch computes in it; fewer bits are the work of ONNX Runtime's quantizers on the graph. What lies on
    a GPU is exported from the processor.

    Args:
        opset: of the standard operators; None for the exporter's own choice.
        fusions: for which kind of device; None keeps to standard operators, which every ONNX runtime knows.
    """

    format = "onnx"

    def __init__(
        self, precision: str, opening: Opening = AS_STORED, *, opset: int | None = None, fusions: Fusions = None
    ) -> None:
        super().__init__(precision, opening)
        self.opset = opset
        self.fusions = fusions

    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        example = example.in_float32()
        with on_processor(example.module):
            module = self._cast(example.module)
            here = replace(example, module=module, small=moved(example.small, CPU), large=moved(example.large, CPU))
            kind = Narrowed if self.precision == HALF else Traced
            graph = export_component(here, kind, opset=self.opset, fusions=self.fusions, watched=watched)
        self._write(graph, folder, example.feeds, **example.called)

    def language_model(self, model: torch.nn.Module, folder: Path, feeds: Sequence[Feed]) -> None:
        # Shape inference, which dynamic quantization begins with, stumbles over what fusing leaves behind.
        fusions = None if self.precision == "int8_dynamic" else self.fusions
        with on_processor(model):
            graph = export_language_model(self._cast(model.float()), opset=self.opset, fusions=fusions)
        self._write(graph, folder, (), positions=positions_of(model))

    def _cast(self, module: torch.nn.Module) -> Any:
        """The module in this precision; a copy, where rounding its weights would change what parity compares the engine with."""
        return narrowed(module, torch.float16) if self.precision == HALF else module

    def _write(self, graph: onnx_ir.Model, folder: Path, feeds: Sequence[Feed], **more: object) -> None:
        save_graph(graph, folder)
        if self.precision not in ("float32", HALF):
            save_graph(self._quantized(folder / GRAPH, feeds), folder)
        write_settings(folder, "onnxruntime", onnxruntime.__version__, self.precision, **more)

    def _quantized(self, graph: Path, feeds: Sequence[Feed]) -> onnx_ir.Model:
        if self.precision == "int8":
            return quantize_activations(graph, feeds)
        if self.precision == "int8_dynamic":
            return quantize_while_running(graph)
        return compress_weights(graph, 4 if self.precision == "int4_weights" else 8)


@contextmanager
def on_processor(module: torch.nn.Module) -> Iterator[None]:
    """Within: a module lies in the processor's memory."""
    home = next(module.parameters()).device
    module.to(CPU)
    try:
        yield
    finally:
        module.to(home)


def export_component(
    example: Example,
    kind: type[Traced] = Traced,
    *,
    opset: int | None = None,
    fusions: Fusions = None,
    watched: tuple[str, ...] = (),
) -> onnx_ir.Model:
    """A component's graph. Its inputs have the dotted names of the call's tensors, its outputs those of the component's."""
    traced, inputs, shapes = example.trace(watched, kind)
    return _export(traced, inputs, dynamic_shapes=shapes, opset_version=opset, ort_fusions=fusions)


def export_language_model(
    model: torch.nn.Module, *, opset: int | None = None, fusions: Fusions = None
) -> onnx_ir.Model:
    """One graph that takes any number of tokens after any number seen. Its cache goes in as `input.past_key_values…` and comes
    out, longer, as `output.past_key_values…`."""
    with quiet_export():
        decoder, inputs = decoding_step(model)
    graph = _export(decoder, inputs, dynamic=True, opset_version=opset, ort_fusions=fusions)
    _build_in_numbers(graph, inputs["past_key_values"])
    _fix_sizes(graph)
    return graph


def save_graph(graph: onnx_ir.Model, folder: Path) -> None:
    """Write a graph, its weights in a file beside it."""
    onnx_ir.external_data.load_to_model(graph)  # the file written over may be the one they are read from
    (folder / WEIGHTS).unlink(missing_ok=True)
    onnx_ir.save(graph, str(folder / GRAPH), external_data=WEIGHTS)


def _export(module: torch.nn.Module, inputs: dict[str, Any], **options: object) -> onnx_ir.Model:
    # torch.onnx prints each of its phases.
    with quiet_export(), _small_terms_kept(), contextlib.redirect_stdout(io.StringIO()):
        graph, _ = OnnxExporter().export_program(module, inputs, OnnxConfig(**options))
    _drop_unavailable_squeezes(graph)
    _forget_origins(graph)
    return graph


@contextmanager
def _small_terms_kept() -> Iterator[None]:
    """onnxscript takes what adds less than 1e-8 for adding nothing; Sana's attention divides by a sum plus 1e-15, which may be
    all that keeps it from dividing zero by zero."""
    nodes = (node for rule in NO_OPERATIONS for node in rule._target_pattern._nodes)
    constants = [c for node in nodes for c in node.inputs if hasattr(c, "_abs_tol")]
    before = [c._abs_tol for c in constants]
    try:
        for constant in constants:
            constant._abs_tol = 0.0
        yield
    finally:
        for constant, tolerance in zip(constants, before, strict=True):
            constant._abs_tol = tolerance


def _drop_unavailable_squeezes(model: onnx_ir.Model) -> None:
    """Torch lets an axis that is longer than one stand, PixArt counts on it, and ONNX calls that an error."""
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Squeeze" or len(node.inputs) != 2 or node.inputs[1].const_value is None:
            continue
        value, axes = node.inputs[0], node.inputs[1].const_value.numpy().reshape(-1)
        if value.shape is None or not all(isinstance(value.shape[int(a)], int) for a in axes):
            continue
        if all(value.shape[int(a)] != 1 for a in axes):
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], value)
            node.graph.remove(node, safe=True)


def _forget_origins(model: onnx_ir.Model) -> None:
    """Leave out where in whose source each operation came from: it names folders of this machine, and fills the file."""
    for graph in model.graphs():
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for output in node.outputs:
                output.metadata_props.clear()


def _build_in_numbers(model: onnx_ir.Model, cache: Cache) -> None:
    """What a cache carries beside keys and values is a number that never changes, such as the width of Mistral's window."""
    graph = model.graph
    for port in [p for p in graph.inputs if p.name.startswith(CACHE_IN) and len(p.shape) == 0]:
        _, layer, attribute = port.name.removeprefix(CACHE_IN).split(".")
        number = getattr(cache.layers[int(layer)], attribute)
        kept = [o for o in graph.outputs if o.name != CACHE_OUT + port.name.removeprefix(CACHE_IN)]
        graph.outputs[:] = kept
        graph.inputs.remove(port)
        port.const_value = onnx_ir.tensor(to_array(number), name=port.name)
        graph.initializers[port.name] = port


def _fix_sizes(model: onnx_ir.Model) -> None:
    """Axes that the exporter left open and named after the one size they have get that size."""
    for port in model.graph.inputs:
        sizes: Mapping[int, str] = {i: str(size) for i, size in enumerate(port.shape)}
        port.shape = onnx_ir.Shape([int(s) if s.isdigit() else port.shape[i] for i, s in sizes.items()])
