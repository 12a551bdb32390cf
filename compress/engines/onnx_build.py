"""Torch to ONNX, through the dynamo exporter of transformers: batch and text lengths stay open, weights lie beside the graph."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Literal

import onnx_ir
import torch
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from compress.engines.builder import Example
from compress.engines.tracing import decoding_step, quiet_export

Fusions = Literal["cpu", "cuda"] | None  # into operators that only ONNX Runtime knows
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"


def export_component(
    example: Example, *, opset: int | None = None, fusions: Fusions = None, watched: tuple[str, ...] = ()
) -> onnx_ir.Model:
    """A component's graph. Its inputs have the dotted names of the call's tensors, its outputs those of the component's."""
    traced, inputs, shapes = example.trace(watched)
    return _export(traced, inputs, dynamic_shapes=shapes, opset_version=opset, ort_fusions=fusions)


def export_language_model(
    model: torch.nn.Module, *, opset: int | None = None, fusions: Fusions = None
) -> onnx_ir.Model:
    """One graph that takes any number of tokens after any number seen. Its cache goes in as `input.past_key_values…` and comes
    out, longer, as `output.past_key_values…`."""
    with quiet_export():
        decoder, inputs = decoding_step(model)
    return _export(decoder, inputs, dynamic=True, opset_version=opset, ort_fusions=fusions)


def save_graph(graph: onnx_ir.Model, folder: Path) -> None:
    """Write a graph, its weights in a file beside it."""
    (folder / WEIGHTS).unlink(missing_ok=True)
    onnx_ir.save(graph, str(folder / GRAPH), external_data=WEIGHTS)


def _export(module: torch.nn.Module, inputs: dict[str, Any], **options: Any) -> onnx_ir.Model:
    with quiet_export(), contextlib.redirect_stdout(io.StringIO()):  # torch.onnx prints each of its phases
        graph, _ = OnnxExporter().export_program(module, inputs, OnnxConfig(**options))
    return graph
