"""TensorRT: an engine for each NVIDIA GPU it was built for, and the ONNX from which one is built for any other."""

from __future__ import annotations

from pathlib import Path

from compress.engines import Engine, tolerances


def weights(folder: Path) -> tuple[Path, ...]:
    """Of engines for several GPUs one is read, here the largest, and not the ONNX they were built from."""
    return tuple(sorted(folder.glob("*.engine"), key=lambda engine: engine.stat().st_size)[-1:])


ENGINE = Engine(
    format="tensorrt",
    title="TensorRT",
    distribution="tensorrt-rtx-cu13",
    files=("*.engine", "model.onnx", "model.onnx.data"),
    devices=frozenset({"cpu", "cuda"}),  # it computes on the GPU, and gives its values on the device of its caller
    precisions=tolerances("float32", "float16", "bfloat16", "float8", "int8", "int8_weights", "int4_weights"),
    weights=weights,
)
