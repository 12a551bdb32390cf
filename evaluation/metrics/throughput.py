"""What comes out in a second: images, or tokens written after the first one.

Same blocks as `latency`; for text the time to the first token is left out, so that this is the speed of decoding.
"""

from __future__ import annotations

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class Throughput(Params):
    """Nothing to set; `evaluate.timing_batch` and `new_tokens` hold for both sides."""


@metric(
    version=1,
    title="throughput",
    params=Throughput,
    needs=("timings",),
    better="higher",
    statistic=statistics.RATE,
    unit="/s",
)
def measure(evidence: Evidence, params: Throughput) -> Sample:
    timings = evidence.timings
    if timings is None:
        raise ValueError("nothing was timed")
    if len(timings.first):
        rates = timings.items * (timings.work - 1) / (timings.seconds - timings.first)
    else:
        rates = timings.items / timings.seconds
    what = "decoded tokens" if len(timings.first) else "images"
    return Sample(
        tuple(map(str, range(len(rates)))),
        rates,
        protocol={"counts": what, **timings.protocol},
    )
