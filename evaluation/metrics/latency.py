"""Time of one whole call, milliseconds: medians of interleaved blocks, and the paired ratio of block times.

Both sides run in one process, alternating in random order, so that drift of the machine meets both alike.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Metric, Sample


class Latency(Params):
    """Nothing to set; `evaluate.timing_batch` and `timing_blocks` hold for both sides."""


def measure(evidence: Evidence, params: Latency) -> Sample:
    if evidence.timings is None:
        raise ValueError("nothing was timed")
    seconds = evidence.timings.seconds
    return Sample(
        tuple(map(str, range(len(seconds)))),
        1000 * seconds,
        protocol={"batch": evidence.timings.items, "work": evidence.timings.work},
    )


def score(sample: Sample, params: Latency) -> Estimate:
    values = sample.values
    found = statistics.bootstrap(lambda draw: np.median(values[draw], axis=1), len(values), float(np.median(values)))
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
    return Estimate(found.value, found.low, found.high, found.n, f"p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f} ms")


def contrast(candidate: Sample, baseline: Sample, params: Latency) -> Estimate:
    return statistics.geometric_ratio(baseline.values, candidate.values)


METRIC: Final = Metric(
    version=1,
    title="latency",
    params=Latency,
    tasks=frozenset({"text_generation", "text_to_image"}),
    needs="timings",
    better="lower",
    unit="ms",
    compared="ratio",
    measure=measure,
    score=score,
    contrast=contrast,
    name=__name__.rsplit(".", 1)[1],
    doc=__doc__ or "",
)
