"""Highest resident memory of a fresh process that loads the model and makes one call, in MB.

Each side has a process of its own; what the interpreter and its libraries take is part of it, as it is for a user.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Metric, Sample


class PeakMemory(Params):
    """Nothing to set."""


def measure(evidence: Evidence, params: PeakMemory) -> Sample:
    if not evidence.peak_memory_bytes:
        raise ValueError("no memory was measured")
    return Sample(
        ("process",), np.array([evidence.peak_memory_bytes / 1e6]), protocol={"counts": "VmHWM of a fresh process"}
    )


def score(sample: Sample, params: PeakMemory) -> Estimate:
    value = float(sample.values[0])
    return Estimate(value, value, value, 1)


def contrast(candidate: Sample, baseline: Sample, params: PeakMemory) -> Estimate:
    value = float(baseline.values[0] / candidate.values[0])
    return Estimate(value, value, value, 1, "one process a side")


METRIC: Final = Metric(
    version=1,
    title="peak memory",
    params=PeakMemory,
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
