"""Numbers and what they rest on: samples by unit, and estimates with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Better = Literal["lower", "higher", "same"]
Compared = Literal["difference", "ratio"]
OWN_REFERENCE = "the baseline's images"  # in a score's protocol: what it was compared with where there are no real ones


@dataclass(frozen=True)
class Sample:
    """What one side showed, unit by unit: `values` is [n] or [n, d], row i belongs to `unit_ids[i]`. Of images compared with others
    as a set there may be several rows a unit, one behind the other (`images_per_prompt` in the protocol).

    reference: what `values` is compared with, for metrics that compare distributions ([m, d], the real images' features).
    moments: their mean [d] and covariance [d, d] alone, where no more of the reference is known.
    note: what a reader must know of this side, such as why it has no number.
    left_out: which of the items, or of the reference, do not count, in words.
    """

    unit_ids: tuple[str, ...]
    values: NDArray[Any]
    reference: NDArray[Any] | None = None
    moments: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)
    note: str = ""
    left_out: str = ""


def shared(one: Sample, other: Sample) -> tuple[Sample, Sample]:
    """Both sides on the units that each of them scored: what one side alone could read is no pair."""
    if one.unit_ids == other.unit_ids:
        return one, other
    scored = frozenset(other.unit_ids)
    units = tuple(name for name in one.unit_ids if name in scored)
    return _on(one, units), _on(other, units)


def _on(sample: Sample, units: tuple[str, ...]) -> Sample:
    rows = {name: row for row, name in enumerate(sample.unit_ids)}
    return replace(sample, unit_ids=units, values=sample.values[[rows[name] for name in units]])


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval. `n` counts units; `note` says what a reader must know to read it right."""

    value: float
    low: float
    high: float
    n: int
    note: str = ""


@dataclass(frozen=True)
class Statistic:
    """How Samples become numbers with intervals.

    score: one side's Sample alone.
    contrast: candidate's and baseline's Samples over the same units to the difference (candidate − baseline), or to the
        ratio when `compared` is "ratio": above 1 is better for the candidate.
    units: a number for each unit alone, [n]; of another shape where a unit alone has none.
    spread_at: a unit's standard deviation where the true change is this, for statistics whose spread grows with it.
    """

    compared: Compared
    score: Callable[[Sample], Estimate]
    contrast: Callable[[Sample, Sample], Estimate]
    units: Callable[[Sample], NDArray[Any]] = field(default=lambda sample: sample.values)
    spread_at: Callable[[float], float] | None = None


@dataclass(frozen=True)
class Sizes:
    """How many images a metric will be given, at the most: generated ones of a noise, and real ones, None where only their statistics
    are known. Copies among them are seen when they are there.

    each: from how many noises; captions: what those of one noise are of.
    """

    generated: int
    real: int | None
    each: int = 1
    captions: Callable[[], Sequence[str]] = field(default=tuple, compare=False)
