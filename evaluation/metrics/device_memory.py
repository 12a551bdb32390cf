"""Highest memory of a GPU that a fresh process allocates while it loads the model and makes one call, in MB.

Each side has a process of its own, and in it torch's allocator is asked for its peak; what that reserves beside is reported with it. The
device's context, some hundred megabytes, and what libraries take by themselves, are no part of it. A side with an engine that holds
weights in memory of its own (ONNX Runtime, llama.cpp, TensorRT) is not measured, for torch would count what is left.
Source: torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved.
"""

from __future__ import annotations

import numpy as np

from compress.model.device_memory import uncounted
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics

ABSENT = "the model runs on no GPU that counts its memory: set device: cuda"


class DeviceMemory(Params):
    """Nothing to set; `evaluate.starts` says how many processes a side."""


@metric(
    version=2,
    title="device memory",
    params=DeviceMemory,
    needs=("starts",),
    better="lower",
    statistic=statistics.RESOURCE_IF_COUNTED,
    unit="MB",
)
def measure(evidence: Evidence, params: DeviceMemory) -> Sample:
    if not evidence.starts:
        raise ValueError("no process was started")
    allocated = np.array([start.device_bytes / 1e6 for start in evidence.starts])
    reserved = float(np.median([start.reserved_bytes / 1e6 for start in evidence.starts]))
    apart = uncounted(evidence.artifact)
    there = not apart and bool((allocated > 0).all())
    return Sample(
        tuple(map(str, range(len(allocated)))),
        allocated if there else np.full(len(allocated), np.nan),
        protocol={"counts": "torch's peak in a fresh process"},
        note=f"{reserved:.0f} MB reserved for it" if there else apart or ABSENT,
    )
