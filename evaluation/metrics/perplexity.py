"""How surprised the model is by held-out text: exp of the mean negative log-probability of a token.

Softmax in float32. Of a conversation, the assistant's tokens are scored. Interval and comparison resample whole documents, the same ones on both sides.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Estimate, Sample, Statistic
from evaluation.verdict import statistics

LN2 = math.log(2)


class Perplexity(Params):
    """Nothing to set."""


def score(sample: Sample) -> Estimate:
    nats, tokens, bytes_ = sample.values.T
    if not len(nats):
        return statistics.too_few(0.0, 0)
    found = statistics.ratio_of_sums(nats, tokens, np.exp)
    note = f"{nats.sum() / LN2 / bytes_.sum():.3f} bits per byte, {int(tokens.sum())} tokens"
    return Estimate(found.value, found.low, found.high, found.n, note)


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    nats, tokens, _ = candidate.values.T
    base_nats, base_tokens, _ = baseline.values.T
    if not len(nats):
        return statistics.too_few(0.0, 0)
    value = float(np.exp(nats.sum() / tokens.sum()) - np.exp(base_nats.sum() / base_tokens.sum()))
    return statistics.bootstrap(
        lambda draw: (
            np.exp(nats[draw].sum(1) / tokens[draw].sum(1)) - np.exp(base_nats[draw].sum(1) / base_tokens[draw].sum(1))
        ),
        len(nats),
        value,
    )


@metric(
    version=1,
    title="perplexity",
    params=Perplexity,
    needs=("documents",),
    better="lower",
    ends=(1, math.inf),
    statistic=Statistic("difference", score, contrast, units=lambda s: s.values[:, 0] / np.maximum(s.values[:, 1], 1)),
)
def measure(evidence: Evidence, params: Perplexity) -> Sample:
    rows = [
        (-tokens.sum(), len(tokens), size)
        for tokens, size in zip(evidence.token_logprobs, evidence.bytes_read, strict=True)
    ]
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return scored(Sample(evidence.unit_ids, values, protocol={"softmax": "float32", **evidence.counted}))


def scored(sample: Sample) -> Sample:
    """The documents of which a token was scored; `values` [n, 2 or more] tells how many in its second column."""
    kept = np.flatnonzero(sample.values[:, 1])
    if len(kept) == len(sample.values):
        return sample
    units, message = tuple(sample.unit_ids[row] for row in kept), f"{len(kept)} of {len(sample.values)} documents count"
    message += ": of the others no token is scored"
    return replace(sample, unit_ids=units, values=sample.values[kept], left_out=message)
