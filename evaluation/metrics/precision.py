"""How many of the painted pictures look real: the share that lies within the real pictures' region of feature space.

The region is a ball around each real picture that reaches to its k-th neighbour. High where pictures are good, however few kinds
there are: `recall` tells those. Source: Kynkäänniemi et al. (2019).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evaluation import neighbours
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Sample, Statistic, metric
from evaluation.two_sets import AgainstReal, observe_pictures


class Precision(AgainstReal):
    k: int = Field(neighbours.NEIGHBOURS, ge=1, description="a picture's ball reaches to its k-th neighbour")


def score(sample: Sample) -> Estimate:
    return neighbours.estimate(neighbours.precision(sample)[0], len(sample.values), 0, 1)


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    found = neighbours.precision(candidate)[0].minus(neighbours.precision(baseline)[0])
    return neighbours.estimate(found, len(candidate.values), -1, 1)


def units(sample: Sample) -> NDArray[np.float64]:
    """Whether each painted picture lies within, 0 or 1 [n]."""
    return neighbours.precision(sample)[1].astype(np.float64)


@metric(
    version=1,
    title="precision",
    params=Precision,
    needs=("pictures",),
    better="higher",
    ends=(0, 1),
    statistic=Statistic("difference", score, contrast, units=units),
)
def measure(evidence: Evidence, params: Precision) -> Sample:
    found = observe_pictures(evidence, params, "precision", k=params.k)
    neighbours.refuse_few(found, "precision")
    return found
