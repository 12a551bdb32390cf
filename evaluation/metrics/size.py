"""Bytes of the weights on disk that running the model reads, in MB: every component of the pipeline."""

from __future__ import annotations

from typing import Final

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Metric, Sample

WEIGHTS = (".safetensors", ".bin", ".onnx", ".data", ".gguf")


class Size(Params):
    """Nothing to set."""


def measure(evidence: Evidence, params: Size) -> Sample:
    total = sum(f.stat().st_size for f in evidence.artifact.path.rglob("*") if f.suffix in WEIGHTS and f.is_file())
    return Sample(("disk",), np.array([total / 1e6]), protocol={"counts": "weight files on disk"})


def score(sample: Sample, params: Size) -> Estimate:
    value = float(sample.values[0])
    return Estimate(value, value, value, 1)


def contrast(candidate: Sample, baseline: Sample, params: Size) -> Estimate:
    value = float(baseline.values[0] / candidate.values[0])
    return Estimate(value, value, value, 1)


METRIC: Final = Metric(
    version=1,
    title="size on disk",
    params=Size,
    tasks=frozenset({"text_generation", "text_to_image"}),
    needs="files",
    better="lower",
    unit="MB",
    compared="ratio",
    measure=measure,
    score=score,
    contrast=contrast,
    name=__name__.rsplit(".", 1)[1],
    doc=__doc__ or "",
)
