"""Joules of one whole call, by the machine's own counters: processor packages (RAPL) and GPUs (NVML).

Same blocks as `latency`. The counters see the whole machine, unavailable parts and other programs included; without any that can be
read the row stays, and says so.
"""

from __future__ import annotations

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.energy import ABSENT
from evaluation.values import Estimate, Sample, Statistic
from evaluation.verdict import statistics

TOO_SHORT = "a call was over before this machine's energy counters moved: raise evaluate.timing_batch"


class Energy(Params):
    """Nothing to set; `evaluate.timing_batch` and `timing_blocks` hold for both sides."""


def score(sample: Sample) -> Estimate:
    """Median of the blocks."""
    return _unknown(sample) or statistics.RESOURCE.score(sample)


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    """Geometric mean of the blocks' ratios baseline ÷ candidate."""
    return _unknown(candidate) or _unknown(baseline) or statistics.RESOURCE.contrast(candidate, baseline)


def _unknown(sample: Sample) -> Estimate | None:
    """No number, and why; None where there is one."""
    missing = float("nan")
    return Estimate(missing, missing, missing, len(sample.values), sample.note) if sample.note else None


@metric(
    version=1,
    title="energy",
    params=Energy,
    needs=("timings", "energy"),
    better="lower",
    statistic=Statistic("ratio", score, contrast),
    unit="J",
)
def measure(evidence: Evidence, params: Energy) -> Sample:
    timings = evidence.timings
    if timings is None:
        raise ValueError("nothing was timed")
    blocks, joules, note = len(timings.seconds), timings.joules, ""
    if not len(joules):
        note = ABSENT
    elif not (joules > 0).all():
        note = TOO_SHORT
    return Sample(
        tuple(map(str, range(blocks))),
        np.full(blocks, np.nan) if note else joules,
        protocol={"counts": timings.counters or "nothing", **timings.protocol},
        note=note,
    )
