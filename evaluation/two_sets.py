"""Painted pictures held against real ones as a set: what the metrics that do so share, from their parameters to an interval."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compress.errors import UserError
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Sample
from evaluation.statistics import Z

Floats = NDArray[np.float64]
Features = NDArray[Any]  # [n, d], float32 or float64; may be a map of a file


class AgainstReal(Params):
    """Which features the two sets are held against each other by, and what the real set is."""

    features: str = Field(
        "zoo://digits-clip", description="feature extractor: the zoo's CLIP, or a local folder or file"
    )
    resize: Literal["pil", "mlperf", "tf1"] = Field(
        "pil", description="pil: antialiased bicubic; mlperf and tf1 reproduce numbers published with those"
    )
    reference: str = Field(
        "", description="the real set: a folder of pictures, or an .npz of mu and sigma; empty: the items' own pictures"
    )


@dataclass(frozen=True, eq=False)
class Linear:
    """A statistic, and how it moves with each unit: to first order it is `value` plus the mean of each array of `shares`.

    shares: an array for each set of units drawn apart from the others, with mean zero. Where painted and real pictures belong
    to the same items there is one, and each item's share is that of both its pictures.
    """

    value: float
    shares: tuple[Floats, ...]

    @classmethod
    def jackknifed(cls, value: float, left_out: Iterable[Floats]) -> Linear:
        """From the values with each unit of a set left out (Efron and Stein, 1981)."""
        return cls(value, tuple((len(found) - 1) * (found.mean() - found) for found in left_out))

    def minus(self, other: Linear) -> Linear:
        """The difference of two statistics of the same units: what moves both alike moves it not at all."""
        pairs = zip(self.shares, other.shares, strict=True)
        return Linear(self.value - other.value, tuple(one - two for one, two in pairs))

    def spread(self) -> float:
        """The standard error; nan where a set is too small to have one."""
        counts = [len(found) for found in self.shares]
        if min(counts) < 2:
            return float("nan")
        sums = (np.square(found).sum() / (n * (n - 1)) for found, n in zip(self.shares, counts, strict=True))
        return float(np.sqrt(sum(sums)))

    def estimate(self, n: int, note: str = "") -> Estimate:
        half = Z * self.spread()
        return Estimate(self.value, self.value - half, self.value + half, n, note)


def observe(evidence: Evidence, params: AgainstReal, **protocol: str | float) -> Sample:
    """Features of both sets. The protocol says whether they belong to the same items, besides what the metric adds."""
    from evaluation.features.pictures import against_real

    found = against_real(evidence, params.features, params.resize, params.reference)
    pairs = "no" if params.reference else "by item"
    return replace(found, protocol={**found.protocol, "paired": pairs, **protocol})


def observe_pictures(evidence: Evidence, params: AgainstReal, title: str, **protocol: str | float) -> Sample:
    """As `observe`, for a metric that mean and covariance do not suffice.

    Raises:
        UserError: the reference is no more than these.
    """
    if params.reference.endswith(".npz"):
        raise UserError(
            f"{title} needs the features of each real picture, and {params.reference} holds their mean and covariance",
            fix="give a folder of pictures as the reference, or use fid",
        )
    return observe(evidence, params, **protocol)


def real(sample: Sample) -> Features:
    """The real pictures' features.

    Raises:
        ValueError: the sample holds none.
    """
    if sample.reference is None:
        raise ValueError("this sample holds no features of real pictures")
    return sample.reference


def paired(sample: Sample) -> bool:
    """Whether painted picture i and real picture i belong to the same item."""
    same = sample.reference is not None and len(sample.reference) == len(sample.values)
    return same and sample.protocol.get("paired") != "no"
