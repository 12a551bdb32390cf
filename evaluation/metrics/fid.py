"""Fréchet distance between painted and real pictures' features, as Gaussians. Reported; gate on `kid`, which is unbiased.

With as few pictures as there are features the covariance is singular, and the number is marked as not comparable. The interval
is a delete-a-group jackknife over prompts, never a bootstrap, which moves FID upwards. Source: Heusel et al. (2017).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Sample, Statistic, metric

GROUPS = 32


class Fid(Params):
    features: str = Field("zoo://digits-clip", description="feature extractor: the zoo's CLIP, or a local CLIP folder")


def frechet(painted: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), of features [n, d] and [m, d]; the root through symmetric matrices only."""
    shift = painted.mean(axis=0) - real.mean(axis=0)
    one, other = np.cov(painted, rowvar=False), np.cov(real, rowvar=False)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ other @ root)  # similar to Σ₁Σ₂, but symmetric: no complex numbers
    trace = np.trace(one) + np.trace(other) - 2 * np.sqrt(np.clip(middle, 0, None)).sum()
    return float(max(0.0, shift @ shift + trace))


def score(sample: Sample) -> Estimate:
    real = _real(sample)
    n, d = sample.values.shape
    note = f"n = {n}" if n > d else f"not comparable: {n} pictures, {d} features"
    return _jackknife(
        frechet(sample.values, real), [frechet(sample.values[keep], real[keep]) for keep in _groups(n)], n, note
    )


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    def difference(keep: NDArray[np.int64]) -> float:
        one = frechet(candidate.values[keep], _real(candidate)[keep])
        return one - frechet(baseline.values[keep], _real(baseline)[keep])

    n, d = candidate.values.shape
    note = "" if n > d else "not comparable"
    return _jackknife(difference(np.arange(n)), [difference(keep) for keep in _groups(n)], n, note)


def _groups(n: int) -> list[NDArray[np.int64]]:
    """The units that stay when each of up to 32 groups is left out; none where fewer than two would stay."""
    order = np.arange(n)
    count = min(GROUPS, n // 2) if n >= 4 else 0
    return [order[order % count != g] for g in range(count)]


def _jackknife(value: float, left_out: list[float], n: int, note: str) -> Estimate:
    if not left_out:
        return Estimate(value, math.nan, math.nan, n, note)
    found = statistics.jackknife(value, np.array(left_out), note)
    return Estimate(value, found.low, found.high, n, note)


def _real(sample: Sample) -> NDArray[np.float64]:
    if sample.reference is None:
        raise ValueError("this sample holds no features of real pictures")
    return sample.reference


@metric(
    version=1,
    title="FID",
    params=Fid,
    tasks=("text_to_image",),
    needs=("pictures",),
    better="lower",
    statistic=Statistic("difference", score, contrast),
)
def measure(evidence: Evidence, params: Fid) -> Sample:
    from evaluation.features.pictures import against_real

    return against_real(evidence, params.features)
