"""How far the painted pictures are from real ones as a set: the unbiased squared maximum mean discrepancy.

The polynomial kernel (x·y/d + 1)³ over CLIP features of unit length scaled by √d. Gate on this one: FID is reported beside it.
The interval is a jackknife over prompts, paired in both arms. Source: Bińkowski et al., "Demystifying MMD GANs" (2018).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Sample, Statistic, metric


class Kid(Params):
    features: str = Field("zoo://digits-clip", description="feature extractor: the zoo's CLIP, or a local CLIP folder")


def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(√d x · √d y / d + 1)³ for features of unit length: [n, d] and [m, d] to [n, m]."""
    found: NDArray[np.float64] = (x @ y.T + 1) ** 3
    return found


def unbiased(painted: NDArray[np.float64], real: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The estimate, and the estimates with unit i left out of both sets [n].

    Each sum over pairs loses unit i's row and column, so all n cost no more than one.
    """
    n = len(painted)
    within_p, within_r, across = kernel(painted, painted), kernel(real, real), kernel(painted, real)
    for square in (within_p, within_r):
        np.fill_diagonal(square, 0)
    # The pairs (i, i) are left out across too: item i's picture and its real one share their caption.
    np.fill_diagonal(across, 0)

    def distance(
        p: NDArray[np.float64], r: NDArray[np.float64], c: NDArray[np.float64], units: int
    ) -> NDArray[np.float64]:
        pairs = units * (units - 1)
        return (p + r - 2 * c) / (pairs or np.nan)  # two units less one make no pair: no interval

    totals = [np.asarray(square.sum()) for square in (within_p, within_r, across)]
    less = [square.sum(axis=0) + square.sum(axis=1) for square in (within_p, within_r, across)]
    without = distance(totals[0] - less[0], totals[1] - less[1], totals[2] - less[2], n - 1)
    return float(distance(totals[0], totals[1], totals[2], n)), without


def score(sample: Sample) -> Estimate:
    return statistics.jackknife(*unbiased(sample.values, _real(sample)))


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    one, one_without = unbiased(candidate.values, _real(candidate))
    other, other_without = unbiased(baseline.values, _real(baseline))
    return statistics.jackknife(one - other, one_without - other_without)


def _real(sample: Sample) -> NDArray[np.float64]:
    if sample.reference is None:
        raise ValueError("this sample holds no features of real pictures")
    return sample.reference


@metric(
    version=1,
    title="KID",
    params=Kid,
    tasks=("text_to_image",),
    needs=("pictures",),
    better="lower",
    statistic=Statistic("difference", score, contrast),
)
def measure(evidence: Evidence, params: Kid) -> Sample:
    from evaluation.features.pictures import against_real

    return against_real(evidence, params.features)
