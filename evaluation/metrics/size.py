"""Bytes of the weights on disk that running the model reads, in MB: every component of the pipeline."""

from __future__ import annotations

import numpy as np

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Sample, metric

WEIGHTS = (".safetensors", ".bin", ".onnx", ".data", ".gguf")


class Size(Params):
    """Nothing to set."""


@metric(
    version=1,
    title="size on disk",
    params=Size,
    tasks=("text_generation", "text_to_image"),
    needs=("files",),
    better="lower",
    statistic=statistics.EXACT,
    unit="MB",
)
def measure(evidence: Evidence, params: Size) -> Sample:
    total = sum(f.stat().st_size for f in evidence.artifact.path.rglob("*") if f.suffix in WEIGHTS and f.is_file())
    return Sample(("disk",), np.array([total / 1e6]), protocol={"counts": "weight files on disk"})
