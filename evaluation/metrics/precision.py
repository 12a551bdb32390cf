"""How many of the generated images look real: the share that lies within the real images' region of feature space.

The region is a ball around each real image that reaches to its k-th neighbour. High where images are good, however few kinds
there are: `recall` tells those. Source: Kynkäänniemi et al. (2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from compress.params import Fault
from evaluation.distances import neighbours
from evaluation.distances.image_sets import Linear, observe_images
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.repeats import noises, over_noises, units_of, units_over_noises
from evaluation.preflight.references import AgainstImages
from evaluation.values import Estimate, Sample, Sizes, Statistic

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Precision(AgainstImages):
    k: int = Field(neighbours.NEIGHBOURS, ge=1, description="an image's ball reaches to its k-th neighbour")


def score(sample: Sample) -> Estimate:
    return neighbours.estimate(_linear(sample), units_of(sample), 0, 1)


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    found = _linear(candidate).minus(_linear(baseline))
    return neighbours.estimate(found, units_of(candidate), -1, 1)


def _linear(sample: Sample) -> Linear:
    return over_noises(lambda one: neighbours.precision(one)[0], sample)


def units(sample: Sample) -> NDArray[np.float64]:
    """Whether each generated image lies within, 0 or 1 [n]; the share of a prompt's images where it has several."""
    return units_over_noises(lambda one: neighbours.precision(one)[1].astype(np.float64), sample)


def enough(params: Precision, sizes: Sizes) -> Fault | None:
    return neighbours.enough("precision", params.k, sizes)


@metric(
    version=1,
    title="precision",
    params=Precision,
    needs=("images",),
    better="higher",
    ends=(0, 1),
    statistic=Statistic("difference", score, contrast, units=units),
    enough=enough,
)
def measure(evidence: Evidence, params: Precision) -> Sample:
    found = observe_images(evidence, params, "precision", k=params.k)
    neighbours.refuse_few(noises(found)[0], "precision")
    return found
