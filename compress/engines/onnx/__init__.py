"""ONNX: a graph in a standard format, run by ONNX Runtime."""

from __future__ import annotations

from compress.engines import Engine, tolerances
from compress.errors import Refusal
from compress.machine.devices import kind_of
from compress.machine.gpus import has_files

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
CACHE = "past_key_values."  # in the names of what of a language model's graph is its cache
WITH_CUDA = "install onnxruntime-gpu in place of onnxruntime"


def lacks(device: str) -> str:
    """Why ONNX Runtime, as it is installed here, computes nothing on a device, or ""."""
    if kind_of(device) != "cuda" or has_files("onnxruntime", "*onnxruntime_providers_cuda*"):
        return ""
    return Refusal("onnxruntime is the one for processors alone here", WITH_CUDA)


ENGINE = Engine(
    format="onnx",
    title="ONNX Runtime",
    distribution="onnxruntime",
    files=(GRAPH, WEIGHTS),
    devices=frozenset({"cpu", "cuda"}),
    precisions=tolerances("float32", "float16", "int8", "int8_dynamic", "int8_weights", "int4_weights"),
    over_call=frozenset({"int8_dynamic"}),
    lacks=lacks,
)
