"""How far what was inpainted in the mask looks from what the original generates there from the same noise: LPIPS of the two, each pasted into
the input, so that nothing outside the mask counts. 0 is the same.

The distance is that of the whole image, of which a small mask is a small part: it compares models on the same masks, and not masks. What
networks there are, and what each number is, `pare explain lpips` tells.
Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.metrics.lpips import Lpips, distances_of, open_network
from evaluation.observe.given_images import input_of, mask_of
from evaluation.observe.image_pairs import image_pairs
from evaluation.values import Sample
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from evaluation.observe.image_pairs import Image


class MaskedLpips(Lpips):
    """As of LPIPS itself."""


@metric(
    version=1,
    title="LPIPS in the mask",
    params=MaskedLpips,
    needs=("images", "inputs", "masks"),
    better="lower",
    ends=(0, math.inf),
    statistic=statistics.MEAN,
    own=True,
)
def measure(evidence: Evidence, params: MaskedLpips) -> Sample:
    network, protocol = open_network(params.features)
    if evidence.original is None:
        return Sample(evidence.unit_ids, np.zeros(len(evidence.items)), protocol=protocol)
    return Sample(evidence.unit_ids, distances_of(network, _pasted(evidence)), protocol=protocol)


def _pasted(evidence: Evidence) -> Iterator[tuple[Image, Image]]:
    """For each item both sides' images, with the input outside the mask."""
    for index, pair in enumerate(image_pairs(evidence)):
        before, mask = input_of(evidence, index, pair[0]), mask_of(evidence, index, pair[0])[..., None]
        yield tuple(np.where(mask, image, before) for image in pair)  # type: ignore[misc]
