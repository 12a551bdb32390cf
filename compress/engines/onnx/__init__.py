"""ONNX: a graph in a standard format, run by ONNX Runtime."""

from __future__ import annotations

from compress.engines import Engine, tolerances

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"

ENGINE = Engine(
    format="onnx",
    title="ONNX Runtime",
    distribution="onnxruntime",
    files=(GRAPH, WEIGHTS),
    devices=frozenset({"cpu"}),
    precisions=tolerances("float32", "int8", "int8_dynamic", "int8_weights", "int4_weights"),
    over_call=frozenset({"int8_dynamic"}),
)
