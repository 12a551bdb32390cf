"""Time from one written token to the next, milliseconds: the call's time after its first token, spread over the tokens left.

Same blocks as `latency`; its inverse, times the batch, is `throughput`.
"""

from __future__ import annotations

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.token_times import token_sample
from evaluation.values import Sample
from evaluation.verdict import statistics


class TimePerOutputToken(Params):
    """Nothing to set; `evaluate.new_tokens` and `timing_batch` hold for both sides."""


@metric(
    version=1,
    title="time per output token",
    params=TimePerOutputToken,
    needs=("token_timings",),
    better="lower",
    statistic=statistics.TIME,
    unit="ms",
)
def measure(evidence: Evidence, params: TimePerOutputToken) -> Sample:
    return token_sample(evidence, lambda timings: (timings.seconds - timings.first) / (timings.work - 1))
