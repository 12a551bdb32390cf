"""Whether images of one set lie within the other, its region being balls around its images: precision and recall.

Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from compress.errors import UserError
from compress.params import Fault
from evaluation.distances.image_sets import Features, Floats, Linear, different, paired, real
from evaluation.values import Estimate, Sample, Sizes
from evaluation.verdict.statistics import Z

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 512  # of a block of distances
SPLITS = 16  # into two halves, for the interval
SEED = 0
NEIGHBOURS = 3
TOUCHING = 1e-12  # of two squared lengths: a squared distance below it is rounding
Truths: TypeAlias = "NDArray[np.bool_]"


def precision(sample: Sample) -> tuple[Linear, Truths]:
    """The share of generated images within the real ones' region, and which they are [n]."""
    return _share(sample.values, real(sample), _neighbours(sample), together=paired(sample))


def recall(sample: Sample) -> tuple[Linear, Truths]:
    """The share of real images within the generated ones' region, and which they are [m]."""
    return _share(real(sample), sample.values, _neighbours(sample), together=paired(sample))


def estimate(found: Linear, n: int, low: float, high: float) -> Estimate:
    """A share, or a difference of two, between `low` and `high`.

    The interval does not vanish where no unit differs from another: one pair more in each direction, as Agresti and Min add
    ("Simple Improved Confidence Intervals for Comparing Matched Proportions", 2005), adds its spread.
    """
    half = Z * float(np.hypot(found.spread(), np.sqrt(2) / (n + 2)))
    reach = np.clip((found.value - half, found.value + half), low, high)
    return Estimate(found.value, float(reach[0]), float(reach[1]), n)


def refuse_few(sample: Sample, title: str) -> None:
    """An image's ball reaches to its k-th neighbour, so there must be that many.

    Raises:
        UserError: there are not.
    """
    sets = (sample.values, real(sample))
    least = min(map(different, sets))
    if wrong := few(title, _neighbours(sample), least, copies=least < min(map(len, sets))):
        raise UserError(wrong.message, fix=wrong.fix)


def few(title: str, k: int, least: int, *, copies: bool = False) -> Fault | None:
    """Why so many images of the smaller set have no k neighbours each; copies: whether some are not counted as they are such."""
    message = f"{title} looks at {k} neighbours of each image, and there are {least} images{' that differ' * copies}"
    return Fault(message, f"give more than {k} samples, or a smaller k") if least <= k else None


def enough(title: str, k: int, sizes: Sizes) -> Fault | None:
    """As `refuse_few`, of images that are not there yet."""
    return few(title, k, sizes.generated if sizes.real is None else min(sizes.generated, sizes.real))


def covered(probes: Features, region: Features, k: int, halves: Truths) -> Truths:
    """Whether each probe [n, d] lies within the region of [m, d], whole and of each half's units alone.

    Args:
        halves: which units each half has [h, m], more than k each.

    Returns:
        [1 + h, n], the whole region first.
    """
    radii = _radii(region, k, halves)
    found = np.zeros((len(radii), len(probes)), dtype=np.bool_)
    for start in range(0, len(probes), ROWS):
        squares = _squares(probes[start : start + ROWS], region)
        for within, reach in zip(found, radii, strict=True):
            within[start : start + ROWS] = (squares <= reach).any(axis=1)
    return found


def _share(probes: Features, region: Features, k: int, *, together: bool) -> tuple[Linear, Truths]:
    """The share of probes within the region, and its spread from random halves of all units (a delete-half jackknife).

    Balls overlap, so few units matter until many are gone, and leaving out few at a time says twice the spread; half at a time
    is right for statistics that jump. Source: Shao and Wu, "A General Theory for Jackknife Variance Estimation" (1989).

    Args:
        together: probe i and unit i of the region are of the same item, and leave together.
    """
    draw = np.random.default_rng(SEED)
    units = _halves(draw, len(region))
    chosen = units if together else _halves(draw, len(probes))
    if min(len(region), len(probes)) // 2 <= k:  # a half has too few: no interval
        within = covered(probes, region, k, units[:0])[0]
        return Linear(float(within.mean()), (np.full(len(units), np.nan),)), within
    within, *by_half = covered(probes, region, k, units)
    shares = np.array([found[half].mean() for found, half in zip(by_half, chosen, strict=True)])
    # Half the units' statistic strays from the whole's as far as the whole's from the truth.
    strayed = np.sqrt(len(shares) - 1) * (shares - shares.mean())
    return Linear(float(within.mean()), (strayed,)), within


def _halves(draw: np.random.Generator, n: int) -> Truths:
    """Which of n units are in each half of each split [2 · SPLITS, n]."""
    found = np.zeros((2 * SPLITS, n), dtype=np.bool_)
    for one, other in zip(found[::2], found[1::2], strict=True):
        one[draw.permutation(n)[: n // 2]] = True
        other[:] = ~one
    return found


def _radii(region: Features, k: int, halves: Truths) -> Floats:
    """Squared distance of each unit to its k-th neighbour: [1 + h, m], of all, and of each half.

    Units outside a half get −1 there: they have no ball.
    """
    m = len(region)
    found = np.full((1 + len(halves), m), -1.0)
    for start in range(0, m, ROWS):
        squares = _squares(region[start : start + ROWS], region)
        rows = np.arange(start, start + len(squares))
        squares[rows - start, rows] = np.inf
        found[0, rows] = _nearest(squares, k)
        for reach, half in zip(found[1:], halves, strict=True):
            own = rows[half[rows]]
            reach[own] = _nearest(squares[np.ix_(own - start, half)], k)
    return found


def _nearest(squares: Floats, k: int) -> Floats:
    """The k-th smallest of each row."""
    found: Floats = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return found


def _squares(one: Features, other: Features) -> Floats:
    """Squared distances [n, m]; of images that agree, exactly 0."""
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    lengths = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    found: Floats = lengths - 2 * (x @ y.T)
    found[found < TOUCHING * lengths] = 0
    return found


def _neighbours(sample: Sample) -> int:
    return int(sample.protocol.get("k", NEIGHBOURS))
