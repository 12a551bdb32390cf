"""Peak signal to noise, decibel, of an image as a copy of the one the original generates from the same noise.

10 log₁₀ (255² ÷ mean squared difference) of each image, then the mean of images. No copy counts as better than 58.9 dB: 8-bit
images say no more of what was generated than their rounding, whose mean square is a twelfth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.image_pairs import image_pairs
from evaluation.values import Sample
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDING = 1 / 12  # mean square of an error spread evenly over −½..½
CAP = 10 * math.log10(255**2 / ROUNDING)
EQUAL = f"{CAP:.1f} dB is the same image, as the baseline's are to themselves"


class Psnr(Params):
    """Nothing to set."""


def peak_ratio(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """PSNR of two images of one shape, dB, no more than `CAP`."""
    error = np.square(one.astype(np.float64) - other).mean()
    return float(10 * np.log10(255**2 / max(error, ROUNDING)))


@metric(
    version=1,
    title="PSNR",
    params=Psnr,
    needs=("images",),
    better="higher",
    statistic=statistics.MEAN,
    unit="dB",
    own=True,
)
def measure(evidence: Evidence, params: Psnr) -> Sample:
    protocol: dict[str, str | int | float] = {"range": 255, "cap": CAP}
    if evidence.original is None:
        return Sample(evidence.unit_ids, np.full(len(evidence.items), CAP), protocol=protocol)
    found = [peak_ratio(one, other) for one, other in image_pairs(evidence)]
    return Sample(evidence.unit_ids, np.array(found), protocol=protocol, note=EQUAL)
