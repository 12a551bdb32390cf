"""Bytes of the weights on disk that running the model reads, in MB: every component of the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Sample, metric

WEIGHTS = (".safetensors", ".bin", ".onnx", ".data", ".gguf", ".engine", ".pt2")


class Size(Params):
    """Nothing to set."""


@metric(
    version=2,
    title="size on disk",
    params=Size,
    tasks=("text_generation", "text_to_image"),
    needs=("files",),
    better="lower",
    statistic=statistics.EXACT,
    unit="MB",
)
def measure(evidence: Evidence, params: Size) -> Sample:
    total = sum(f.stat().st_size for f in weights_read(evidence.artifact.path))
    return Sample(("disk",), np.array([total / 1e6]), protocol={"counts": "weight files on disk"})


def weights_read(folder: Path) -> tuple[Path, ...]:
    """The weight files in a folder, at any depth, that running the model reads."""
    return tuple(f for f in sorted(folder.rglob("*")) if f.suffix in WEIGHTS and f.is_file() and _is_read(f))


def _is_read(file: Path) -> bool:
    """An engine's `.bin` stands beside its `.xml`; a checkpoint's is not read where safetensors lie beside it. Of TensorRT's engines
    for several GPUs one is read, here the largest, and not the ONNX they were built from."""
    if engines := sorted(file.parent.glob("*.engine")):
        return file == max(engines, key=lambda engine: engine.stat().st_size)
    if file.suffix != ".bin" or file.with_suffix(".xml").is_file():
        return True
    return file.name != "training_args.bin" and not any(file.parent.glob("*.safetensors"))
