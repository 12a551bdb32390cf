"""Highest resident memory of a fresh process that loads the model and makes one call, in MB.

Each side has a process of its own; what the interpreter and its libraries take is part of it, as it is for a user.
"""

from __future__ import annotations

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class PeakMemory(Params):
    """Nothing to set."""


@metric(
    version=2,
    title="peak memory",
    params=PeakMemory,
    needs=("starts",),
    better="lower",
    statistic=statistics.RESOURCE,
    unit="MB",
)
def measure(evidence: Evidence, params: PeakMemory) -> Sample:
    if not evidence.starts:
        raise ValueError("no memory was measured")
    peaks = np.array([start.peak_bytes / 1e6 for start in evidence.starts])
    return Sample(tuple(map(str, range(len(peaks)))), peaks, protocol={"counts": "VmHWM of a fresh process"})
