"""ONNX: a graph in a standard format, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import read_json
from compress.engines import SETTINGS, Engine, tolerances
from compress.errors import Refusal
from compress.machine.deps import both_installed
from compress.machine.devices import kind_of
from compress.machine.gpus import has_files

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
CACHE = "past_key_values."  # in the names of what of a language model's graph is its cache
ON_GPUS = ("float32", "float16")  # the precisions that its CUDA provider has kernels for throughout
WITH_CUDA = "install onnxruntime-gpu in place of onnxruntime"
APART = "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"


def lacks(device: str) -> str:
    """Why ONNX Runtime, as it is installed here, computes nothing on a device, or ""."""
    if kind_of(device) != "cuda":
        return ""
    if not has_files("onnxruntime", "*onnxruntime_providers_cuda*"):
        return Refusal("onnxruntime is the one for processors alone here", WITH_CUDA)
    if both_installed("onnxruntime"):
        return Refusal(
            "onnxruntime and onnxruntime-gpu are both installed here, and each has files of the other", APART
        )
    return ""


def unfit(folder: Path, device: str) -> str:
    """Why a graph was not built for a device, as far as its record tells; or ""."""
    if kind_of(device) != "cuda" or not (folder / SETTINGS).is_file():
        return ""
    precision = read_json(folder / SETTINGS).get("precision")
    return "" if precision in ON_GPUS else f"it was built in {precision}, for processors"


ENGINE = Engine(
    format="onnx",
    title="ONNX Runtime",
    distribution="onnxruntime",
    files=(GRAPH, WEIGHTS),
    devices=frozenset({"cpu", "cuda"}),
    precisions=tolerances("float32", "float16", "int8", "int8_dynamic", "int8_weights", "int4_weights"),
    over_call=frozenset({"int8_dynamic"}),
    unfit=unfit,
    lacks=lacks,
)
