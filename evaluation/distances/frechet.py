"""The Fréchet distance of two sets of features taken as Gaussians: streamed moments, symmetric eigendecompositions, and how each
unit moves the result, from which its interval and its limit for endlessly many units follow.

Never a bootstrap: resampling doubles units, which moves the distance upwards until the interval excludes its own estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from compress.errors import UserError
from compress.params import Fault
from evaluation.distances.image_sets import Features, Floats, Linear, different, paired, real
from evaluation.preflight.paths import width_of
from evaluation.values import Sample, Sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 1024  # of a chunk: enough to keep the processor busy, and 16 MB of 2048 features
FEWEST = 4  # units that an interval can be read from
SAME = 1e-9  # of the two covariances' traces: a distance below it is rounding
PARTS = (1, 2, 4)  # into how many parts of its size FID∞ cuts the units
SEED = 0
Units: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [d] and scatter Σ(x − mean)(x − mean)ᵀ [d, d] of `count` rows. Count 0: unknown, and scatter is the covariance."""

    count: int
    mean: Floats
    scatter: Floats

    @classmethod
    def of(cls, features: Features, units: Units | None = None, rows: int = ROWS) -> Moments:
        """Of the rows of [n, d], or of those in `units`, in float64 and a chunk at a time: the whole is never copied.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
        """
        d = features.shape[1]
        count, mean, scatter = 0, np.zeros(d), np.zeros((d, d))
        for chunk in _chunks(features, units, rows):
            here = chunk.mean(axis=0)
            step, total = here - mean, count + len(chunk)
            # The shift between the two means is one more row, so that a single product adds both.
            centred = np.vstack((chunk - here, np.sqrt(count * len(chunk) / total) * step))
            scatter += centred.T @ centred
            mean += step * len(chunk) / total
            count = total
        return cls(count, mean, scatter)

    @classmethod
    def given(cls, mean: Floats, covariance: Floats) -> Moments:
        """Of published statistics, where nobody says how many images they are of."""
        return cls(0, mean, covariance)

    def merge(self, other: Moments) -> Moments:
        """Those of both sets of rows together.

        Raises:
            ValueError: a count is unknown.
        """
        if not self.count or not other.count:
            raise ValueError("moments of an unknown count do not merge")
        total = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / total)
        return Moments(total, self.mean + step * (other.count / total), scatter)

    @property
    def covariance(self) -> Floats:
        return self.scatter / self.freedom

    @property
    def freedom(self) -> int:
        """What the scatter is divided by."""
        return max(self.count - 1, 1)


@dataclass(frozen=True)
class Distance:
    """The squared Fréchet distance. `clipped`: how much of it hangs on eigenvalues that are negative, and were taken as 0."""

    value: float
    clipped: float = 0.0

    @property
    def note(self) -> str:
        """What a reader must know of it: "" where the clipped part is negligible."""
        return f"{self.clipped:.2g} clipped" if self.clipped > max(1e-3 * self.value, 1e-9) else ""


@dataclass(frozen=True, eq=False)
class Coupling:
    """How two Gaussians lie to each other.

    shift: μ₁ − μ₂ [d]. there, back: [d, r] with A = there·thereᵀ the linear map that carries the first one's deviations to the
    second's at least cost, and B = back·backᵀ the way back.
    """

    distance: Distance
    shift: Floats
    there: Floats
    back: Floats

    @classmethod
    def of(cls, one: Moments, other: Moments) -> Coupling:
        """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), and A = Σ₂^½ M^-½ Σ₂^½ with M = Σ₂^½ Σ₁ Σ₂^½.

        Any F with FFᵀ = Σ₂ serves as Σ₂^½, and one without Σ₂'s vanishing directions adds no rounding of theirs. Both maps
        come from M's eigenvectors V: A = FV m^-½ (FV)ᵀ, B = Σ₁FV m^-³⁄₂ (Σ₁FV)ᵀ, without those that vanish.
        """
        factor, negative = _factor(other)
        squares, turn = _eigen(factor.T @ (one.scatter @ factor) / one.freedom)
        spread = np.trace(one.scatter) / one.freedom + np.trace(other.scatter) / other.freedom
        shift = one.mean - other.mean
        value = float(shift @ shift + spread - 2 * np.sqrt(np.clip(squares, 0, None)).sum())
        if value < SAME * spread or _equal(one, other):
            value = 0.0
        kept = squares > _floor(squares)
        there = factor @ turn[:, kept]
        del factor, turn
        squares, lost = squares[kept], 2 * np.sqrt(-np.clip(squares, None, 0)).sum()
        back = one.scatter @ there
        back *= squares**-0.75 / one.freedom
        there *= squares**-0.25
        return cls(Distance(value, float(lost + negative)), shift, there, back)

    def influence(self, features: Features, mean: Floats, units: Units | None, *, first: bool) -> Floats:
        """How the distance moves with each row of the first set, or of the second: [n] of mean zero.

        For a row x of the first set 2(μ₁ − μ₂)ᵀz + zᵀ(I − A)z less its mean, z = x − μ₁; for one of the second likewise with B.
        """
        slope, root = (2 * self.shift, self.there) if first else (-2 * self.shift, self.back)
        parts = []
        for chunk in _chunks(features, units, ROWS):
            chunk -= mean
            parts.append(chunk @ slope + _lengths(chunk) - _lengths(chunk @ root))
        found = np.concatenate(parts)
        found -= found.mean()
        return found


def distance(one: Moments, other: Moments) -> Distance:
    """The squared Fréchet distance of two Gaussians; exactly 0 of equal ones. Source: Heusel et al. (2017), equation 6."""
    return Coupling.of(one, other).distance


def linear(sample: Sample) -> tuple[Linear, Distance]:
    """FID of a sample's two sets, with every unit's share of it."""
    return _of_units(sample, _whole(sample), None)


def limit(sample: Sample) -> Linear:
    """FID∞: what FID tends to with endlessly many units, from how it falls with 1/N. Its bias is all but gone.

    The intercept of FID over 1/N, N the size of the whole, of halves and of quarters, as many as are larger than d; each size's
    FID is the mean over its parts. The source draws 15 subsets at random; parts that share no unit count each unit once at
    every size, so that the limit is hardly less certain than FID is. A reference that is not of the same items stays whole, and
    so does the bias it brings, equal in both arms.

    Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find them" (2020).
    """
    n, d = sample.values.shape
    counts = sizes(n, d)
    order = np.random.default_rng(SEED).permutation(n)
    weights = _intercept(np.array([count / n for count in counts]))
    value, shares, whole = 0.0, [np.zeros(n)], _whole(sample)
    if sample.reference is not None and not paired(sample):
        shares.append(np.zeros(len(sample.reference)))
    for count, weight in zip(counts, weights, strict=True):
        for part in np.array_split(order, count):
            units = None if count == 1 else np.sort(part)
            found, _ = _of_units(sample, whole, units)
            value += weight / count * found.value
            shares[0][slice(None) if units is None else units] += weight / count * n / len(part) * found.shares[0]
            for share, more in zip(shares[1:], found.shares[1:], strict=True):
                share += weight / count * more
    return Linear(float(value), tuple(shares))


def sizes(n: int, d: int) -> tuple[int, ...]:
    """Into how many parts the units are cut for FID∞: parts larger than d where there are enough units."""
    return tuple(count for count in PARTS if n // count > d) if n // 2 > d else PARTS[:2]


def refuse_few(sample: Sample, title: str, needed: int) -> None:
    """Rule out a covariance of too few images, which is singular and its distance a number of nothing. Copies are no more of them.

    Raises:
        UserError: fewer than `needed` were generated, or no more real images than features are there.
    """
    held = [(different(rows), len(rows)) for rows in (sample.values, sample.reference) if rows is not None]
    if wrong := few(title, sample.values.shape[1], needed, *held):
        raise UserError(wrong.message, fix=wrong.fix)


def few(
    title: str, d: int, needed: int, generated: tuple[int, int], real: tuple[int, int] | None = None
) -> Fault | None:
    """Why so many images have no covariance of d features that a distance could rest on.

    Args:
        generated, real: how many of each differ, and how many there are; real: None where only their statistics are known.
    """
    n, (least, _) = generated[0], real or generated
    if n >= needed and least > d:
        return None
    what, (count, held), wanted = ("", generated, needed) if n < needed else ("real ", real or generated, d + 1)
    copies = f" different ones among {held:,}" if count < held else ""
    return Fault(
        f"{title} with {d} features needs {wanted:,} {what}images, and there are {count:,}{copies}",
        f"use kid, which is unbiased, {wanted:,} or more {what}samples, or allow_few: true",
    )


def enough(title: str, features: str, least: Callable[[int], int], sizes: Sizes) -> Fault | None:
    """As `refuse_few`, of images that are not there yet.

    Args:
        least: how many generated ones it takes of so many features.
    """
    d, real = width_of(features), None if sizes.real is None else (sizes.real, sizes.real)
    return None if d is None else few(title, d, least(d), (sizes.generated, sizes.generated), real)


def message(sample: Sample, *more: str) -> str:
    """A number's note: of how many images it is, and whether it may be compared with others."""
    n, d = sample.values.shape
    least = min(different(rows) for rows in (sample.values, sample.reference) if rows is not None)
    how = f"n = {n}" if least > d else f"not comparable: {least} images, {d} features"
    return ", ".join(filter(None, (how, *more)))


def _of_units(sample: Sample, whole: Moments | None, units: Units | None) -> tuple[Linear, Distance]:
    """FID of some generated units against those same real ones, or against the `whole` reference where one is given."""
    one = Moments.of(sample.values, units)
    other = whole or Moments.of(real(sample), units)
    found = Coupling.of(one, other)
    generated = found.influence(sample.values, one.mean, units, first=True)
    if one.count < FEWEST:
        generated *= np.nan  # no interval
    if sample.reference is None:
        shares: tuple[Floats, ...] = (generated,)
    elif whole is None:
        shares = (generated + found.influence(sample.reference, other.mean, units, first=False),)
    else:
        shares = (generated, found.influence(sample.reference, other.mean, None, first=False))
    return Linear(found.distance.value, shares), found.distance


def _whole(sample: Sample) -> Moments | None:
    """The reference's moments, where it is not of the generated units and so stays the same whichever of these are looked at.

    Raises:
        ValueError: the sample has none.
    """
    if sample.moments is not None:
        return Moments.given(*sample.moments)
    return None if paired(sample) else Moments.of(real(sample))


def _chunks(features: Features, units: Units | None, rows: int) -> Iterator[Floats]:
    """Rows in float64, in pieces that the caller may overwrite."""
    for start in range(0, len(features) if units is None else len(units), rows):
        wanted = slice(start, start + rows) if units is None else units[start : start + rows]
        yield np.array(features[wanted], dtype=np.float64)


def _lengths(rows: Floats) -> Floats:
    """Squared, of each row, without a matrix of squares."""
    found: Floats = np.einsum("ij,ij->i", rows, rows)
    return found


def _factor(moments: Moments) -> tuple[Floats, float]:
    """F [d, r] with FFᵀ = Σ, without the directions in which Σ vanishes, and the sum of what was negative beyond rounding."""
    values, vectors = _eigen(moments.covariance)
    floor = _floor(values)
    kept = values > floor
    return vectors[:, kept] * np.sqrt(values[kept]), float(-values[values < -floor].sum())


def _eigen(matrix: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues and vectors of a symmetric matrix, which is overwritten: this method needs no room beside the result."""
    from scipy.linalg import eigh

    if not np.isfinite(matrix).all():
        raise ValueError("features are not finite")
    values, vectors = eigh(matrix, driver="evr", overwrite_a=True, check_finite=False)
    return values, vectors


def _floor(values: Floats) -> float:
    """Below it an eigenvalue is rounding."""
    return float(len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0.0))


def _equal(one: Moments, other: Moments) -> bool:
    return (
        np.array_equal(one.mean, other.mean) and one.count == other.count and np.array_equal(one.scatter, other.scatter)
    )


def _intercept(x: Floats) -> Floats:
    """Weights of the values at x in the intercept of their least-squares line."""
    off = x - x.mean()
    found: Floats = 1 / len(x) - x.mean() * off / np.square(off).sum()
    return found
