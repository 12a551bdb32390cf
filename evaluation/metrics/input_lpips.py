"""How far an image looks from the input that it was made of, to the layers of a network: how much of the input's content is kept. 0 is the
input itself.

A model that changes less than the original is as suspect as one that changes more, so its gate is two-sided unless asked otherwise: hold
it beside `directional_similarity` or `clip_score`, which tell whether the change is the one that was asked for. What networks there are, and
what each number is, `pare explain lpips` tells.
Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018).
"""

from __future__ import annotations

import math

from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.metrics.lpips import Lpips, distances_of, open_network
from evaluation.observe.given_images import edited
from evaluation.values import Sample
from evaluation.verdict import statistics


class InputLpips(Lpips):
    """As of LPIPS itself."""


@metric(
    version=1,
    title="LPIPS to the input",
    params=InputLpips,
    needs=("images", "inputs"),
    better="same",
    ends=(0, math.inf),
    statistic=statistics.MEAN,
)
def measure(evidence: Evidence, params: InputLpips) -> Sample:
    network, protocol = open_network(params.features)
    return Sample(evidence.unit_ids, distances_of(network, edited(evidence)), protocol=protocol)
