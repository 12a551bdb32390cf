"""Time from the call until the first written token arrives, milliseconds: the prompt read, and one token.

Same blocks as `latency`. What it costs to go on from there is `time_per_output_token`.
"""

from __future__ import annotations

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.token_times import token_sample
from evaluation.values import Sample
from evaluation.verdict import statistics


class TimeToFirstToken(Params):
    """Nothing to set; `evaluate.prompt_tokens` and `timing_batch` hold for both sides."""


@metric(
    version=1,
    title="time to first token",
    params=TimeToFirstToken,
    needs=("token_timings",),
    better="lower",
    statistic=statistics.TIME,
    unit="ms",
)
def measure(evidence: Evidence, params: TimeToFirstToken) -> Sample:
    return token_sample(evidence, lambda timings: timings.first)
