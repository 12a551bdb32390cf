"""What comes out in a second: pictures, or tokens written after the first one.

Same blocks as `latency`; for text the time to the first token is left out, so that this is the speed of decoding.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Metric, Sample


class Throughput(Params):
    """Nothing to set; `evaluate.timing_batch` and `new_tokens` hold for both sides."""


def measure(evidence: Evidence, params: Throughput) -> Sample:
    timings = evidence.timings
    if timings is None:
        raise ValueError("nothing was timed")
    if len(timings.first):
        rates = timings.items * (timings.work - 1) / (timings.seconds - timings.first)
    else:
        rates = timings.items / timings.seconds
    what = "decoded tokens" if len(timings.first) else "pictures"
    return Sample(
        tuple(map(str, range(len(rates)))),
        rates,
        protocol={"counts": what, "batch": timings.items, "work": timings.work},
    )


def score(sample: Sample, params: Throughput) -> Estimate:
    values = sample.values
    return statistics.bootstrap(lambda draw: np.median(values[draw], axis=1), len(values), float(np.median(values)))


def contrast(candidate: Sample, baseline: Sample, params: Throughput) -> Estimate:
    return statistics.geometric_ratio(candidate.values, baseline.values)


METRIC: Final = Metric(
    version=1,
    title="throughput",
    params=Throughput,
    tasks=frozenset({"text_generation", "text_to_image"}),
    needs="timings",
    better="higher",
    unit="/s",
    compared="ratio",
    measure=measure,
    score=score,
    contrast=contrast,
    name=__name__.rsplit(".", 1)[1],
    doc=__doc__ or "",
)
