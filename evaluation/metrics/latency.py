"""Time of one whole call, milliseconds: medians of interleaved blocks, and the paired ratio of block times.

Both sides run in one process, alternating in random order, so that drift of the machine meets both alike.
"""

from __future__ import annotations

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class Latency(Params):
    """Nothing to set; `evaluate.timing_batch` and `timing_blocks` hold for both sides."""


@metric(
    version=1,
    title="latency",
    params=Latency,
    needs=("timings",),
    better="lower",
    statistic=statistics.TIME,
    unit="ms",
)
def measure(evidence: Evidence, params: Latency) -> Sample:
    if evidence.timings is None:
        raise ValueError("nothing was timed")
    seconds = evidence.timings.seconds
    return Sample(
        tuple(map(str, range(len(seconds)))),
        1000 * seconds,
        protocol=evidence.timings.protocol,
    )
