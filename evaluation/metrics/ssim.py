"""Structural similarity of an image to the one the original generates from the same noise: 1 is the same image.

Local means, variances and covariances under a Gaussian of σ = 1.5 pixels, of all three colours, of a range of 255: the settings
of the paper. Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compress.errors import UserError
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.image_pairs import image_pairs
from evaluation.values import Sample
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGMA, WINDOW = 1.5, 11  # the window is what a Gaussian of that σ reaches, cut at 3.5 σ


class Ssim(Params):
    """Nothing to set."""


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean SSIM of two images, uint8 [height, width, 3].

    Raises:
        UserError: the window does not fit into them.
    """
    from skimage.metrics import structural_similarity

    if min(one.shape[:2]) < WINDOW:
        raise UserError(
            f"images of {one.shape[1]} × {one.shape[0]} pixels are smaller than SSIM's window of {WINDOW}",
            fix="drop ssim; psnr and lpips take small images",
        )
    how = {
        "data_range": 255,
        "gaussian_weights": True,
        "sigma": SIGMA,
        "use_sample_covariance": False,
        "channel_axis": -1,
    }
    return float(structural_similarity(one, other, **how))


@metric(
    version=1,
    title="SSIM",
    params=Ssim,
    needs=("images",),
    better="higher",
    ends=(-1, 1),
    statistic=statistics.MEAN,
    own=True,
)
def measure(evidence: Evidence, params: Ssim) -> Sample:
    protocol: dict[str, str | int | float] = {"range": 255, "sigma": SIGMA, "window": WINDOW}
    if evidence.original is None:
        return Sample(evidence.unit_ids, np.ones(len(evidence.items)), protocol=protocol)
    found = [similarity(one, other) for one, other in image_pairs(evidence)]
    return Sample(evidence.unit_ids, np.array(found), protocol=protocol)
