"""Time of one call in which a GPU is at work, ms: kernels and copies as they were traced, host and gaps between them left out.

Beside `latency` it tells host and device apart: a call that takes far longer than its device time waits for kernels to be launched, and
CUDA graphs help it; one that takes as long computes. Of a fresh process's third call, of one prompt; where two kernels run at a time it
counts once. Source: torch.profiler, on CUPTI.
"""

from __future__ import annotations

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics

ABSENT = "no kernel was traced: set device: cuda, on an NVIDIA GPU whose driver lets them be traced (CUPTI)"


class DeviceTime(Params):
    """Nothing to set; `evaluate.starts` says how many processes a side."""


@metric(
    version=1,
    title="device time",
    params=DeviceTime,
    needs=("starts",),
    better="lower",
    statistic=statistics.RESOURCE_IF_COUNTED,
    unit="ms",
)
def measure(evidence: Evidence, params: DeviceTime) -> Sample:
    if not evidence.starts:
        raise ValueError("no process was started")
    busy = np.array([1e3 * start.device_seconds for start in evidence.starts])
    there = bool((busy > 0).all())
    whole = float(np.median([1e3 * start.call_seconds for start in evidence.starts]))
    return Sample(
        tuple(map(str, range(len(busy)))),
        busy if there else np.full(len(busy), np.nan),
        protocol={"counts": "kernels and copies of one call, traced"},
        note=f"of {whole:.3g} ms that the call takes" if there else ABSENT,
    )
