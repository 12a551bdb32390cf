"""Generated images compared with real ones as a set: what the metrics that do so share, from their parameters to an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compress.errors import UserError
from evaluation.evidence import Evidence
from evaluation.preflight.references import AgainstImages, AgainstReal
from evaluation.values import Estimate, Sample
from evaluation.verdict.statistics import Z

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDING = 1e-5  # of an image's features, as a share of their length: beyond it two images are not copies
Floats: TypeAlias = "NDArray[np.float64]"
Features: TypeAlias = "NDArray[Any]"  # [n, d], float32 or float64; may be a map of a file


@dataclass(frozen=True, eq=False)
class Linear:
    """A statistic, and how it moves with each unit: to first order it is `value` plus the mean of each array of `shares`.

    shares: an array for each set of units drawn apart from the others, with mean zero. Where generated and real images belong
    to the same items there is one, and each item's share is that of both its images.
    bend: of a mean over pairs of units, weights g [n] to the mean of g_i g_j h(i, j), h being a pair's part: the second order.
    """

    value: float
    shares: tuple[Floats, ...]
    bend: Callable[[Floats], float] | None = None

    @classmethod
    def jackknifed(cls, value: float, left_out: Iterable[Floats]) -> Linear:
        """From the values with each unit of a set left out (Efron and Stein, 1981)."""
        return cls(value, tuple((len(found) - 1) * (found.mean() - found) for found in left_out))

    @classmethod
    def mean(cls, found: Sequence[Linear]) -> Linear:
        """Of statistics of the same units, such as one for each noise; one alone stays as it is."""
        if len(found) == 1:
            return found[0]
        shares = tuple(sum(parts) / len(found) for parts in zip(*(one.shares for one in found), strict=True))
        bends = [one.bend for one in found if one.bend]
        bend = (lambda g: sum(one(g) for one in bends) / len(bends)) if len(bends) == len(found) else None
        return cls(sum(one.value for one in found) / len(found), shares, bend)

    def minus(self, other: Linear) -> Linear:
        """The difference of two statistics of the same units: what moves both alike moves it not at all."""
        pairs = zip(self.shares, other.shares, strict=True)
        one, two = self.bend, other.bend
        bend = (lambda g: one(g) - two(g)) if one and two else None
        return Linear(self.value - other.value, tuple(a - b for a, b in pairs), bend)

    def times(self, scale: float) -> Linear:
        """The statistic in another unit."""
        bend = self.bend
        scaled = (lambda g: scale * bend(g)) if bend else None
        return Linear(scale * self.value, tuple(scale * share for share in self.shares), scaled)

    def spread(self) -> float:
        """The standard error; nan where a set is too small to have one."""
        counts = [len(found) for found in self.shares]
        if min(counts) < 2:
            return float("nan")
        sums = (np.square(found).sum() / (n * (n - 1)) for found, n in zip(self.shares, counts, strict=True))
        return float(np.sqrt(sum(sums)))

    def estimate(self, n: int, note: str = "") -> Estimate:
        spread, skew = self.spread(), self.skew()
        return Estimate(self.value, self.value + (skew - Z) * spread, self.value + (skew + Z) * spread, n, note)

    def skew(self) -> float:
        """By how many standard errors the interval lies further on the side of the long tail; 0 where no second order is known.

        Where a few pairs make a distance small they also make its spread look small, and without this it passes a margin too
        often. Source: Helmers, "On the Edgeworth expansion and the bootstrap approximation for a Studentized U-statistic" (1991).
        """
        if self.bend is None or not self.spread() > 0:
            return 0.0
        g = self.shares[0] / 2
        third, second = float((g**3).mean()), self.bend(g)
        moments = (2 * Z**2 + 1) * third + 3 * (Z**2 + 1) * second
        return moments / (6 * math.sqrt(len(g)) * float(g.std()) ** 3)


def observe(evidence: Evidence, params: AgainstReal, **protocol: str | float) -> Sample:
    """Features of both sets. The protocol says whether they belong to the same items, besides what the metric adds."""
    from evaluation.features.images import against_real

    found = against_real(evidence, params.features, params.resize, params.reference)
    alike = found.reference is not None and len(found.reference) == len(found.values)
    pairs = "by item" if alike and not params.reference else "no"
    each = {"images_per_prompt": evidence.each} if evidence.each > 1 else {}
    how = {**found.protocol, "paired": pairs, **each, **protocol}
    return replace(found, protocol=how)


def observe_images(evidence: Evidence, params: AgainstImages, title: str, **protocol: str | float) -> Sample:
    """As `observe`, for a metric that mean and covariance do not suffice.

    Raises:
        UserError: the reference is no more than these.
    """
    if params.reference.endswith(".npz"):
        raise UserError(
            f"{title} needs the features of each real image, and {params.reference} holds their mean and covariance",
            fix="give a folder of images as the reference, or use fid",
        )
    return observe(evidence, params, **protocol)


def different(rows: Features) -> int:
    """How many of the images are not copies of each other, read from their features [n, d].

    Copies lie side by side when all are sorted along some direction. What separates their features is rounding, which differs
    with an image's place in its batch.
    """
    along = rows @ np.random.default_rng(0).standard_normal(rows.shape[1]).astype(rows.dtype)
    order, rounding = np.argsort(along), ROUNDING * float(np.sqrt(np.einsum("ij,ij->i", rows, rows).mean()))
    near = np.flatnonzero(np.diff(along[order]) <= rounding * np.sqrt(rows.shape[1]))
    return len(rows) - sum(bool(np.linalg.norm(rows[order[i]] - rows[order[i + 1]]) <= rounding) for i in near)


def real(sample: Sample) -> Features:
    """The real images' features.

    Raises:
        ValueError: the sample holds none.
    """
    if sample.reference is None:
        raise ValueError("this sample holds no features of real images")
    return sample.reference


def paired(sample: Sample) -> bool:
    """Whether generated image i and real image i belong to the same item."""
    same = sample.reference is not None and len(sample.reference) == len(sample.values)
    return same and sample.protocol.get("paired") != "no"
