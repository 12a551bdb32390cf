"""How much of what is real can be generated: the share of real images within the generated images' region of feature space.

The region is a ball around each generated image that reaches to its k-th neighbour. Low where whole kinds of images are never
generated, however good the others are: `precision` tells those. Source: Kynkäänniemi et al. (2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from compress.params import Fault
from evaluation.distances import neighbours
from evaluation.distances.image_sets import Linear, observe_images, paired, real
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.repeats import noises, over_noises, units_over_noises
from evaluation.preflight.references import AgainstImages
from evaluation.values import Estimate, Sample, Sizes, Statistic

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Recall(AgainstImages):
    k: int = Field(neighbours.NEIGHBOURS, ge=1, description="an image's ball reaches to its k-th neighbour")


def score(sample: Sample) -> Estimate:
    return neighbours.estimate(_linear(sample), len(real(noises(sample)[0])), 0, 1)


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    found = _linear(candidate).minus(_linear(baseline))
    return neighbours.estimate(found, len(real(noises(candidate)[0])), -1, 1)


def _linear(sample: Sample) -> Linear:
    return over_noises(lambda one: neighbours.recall(one)[0], sample)


def units(sample: Sample) -> NDArray[np.float64]:
    """Whether each item's real image lies within, 0 or 1 [n]; [m, 1] where the real images are not the items'."""
    found = units_over_noises(lambda one: neighbours.recall(one)[1].astype(np.float64), sample)
    return found if paired(sample) else found[:, None]


def enough(params: Recall, sizes: Sizes) -> Fault | None:
    return neighbours.enough("recall", params.k, sizes)


@metric(
    version=1,
    title="recall",
    params=Recall,
    needs=("images",),
    better="higher",
    ends=(0, 1),
    statistic=Statistic("difference", score, contrast, units=units),
    enough=enough,
)
def measure(evidence: Evidence, params: Recall) -> Sample:
    found = observe_images(evidence, params, "recall", k=params.k)
    neighbours.refuse_few(noises(found)[0], "recall")
    return found
