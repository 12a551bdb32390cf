"""A metric: `evaluation/metrics/kid.py` is the metric `kid`, and the function `measure` there, made a record, is the registration."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from compress.params import Fault, Params
from compress.tasks import COST, OF_ITEMS, Observable
from evaluation.values import Better, Compared, Estimate, Sample, Sizes, Statistic

if TYPE_CHECKING:
    from evaluation.evidence import Evidence

P = TypeVar("P", bound=Params)
ENDLESS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Metric(Generic[P]):
    """One metric.

    name: its file's. version: of its result. title: in words. unit: of its values; "" for a pure number.
    params: what a recipe can set.
    needs: what of a side, or of its data, must be observed; it fits every task that yields that.
    better: which direction is good, or that both are bad.
    measure: one side's evidence (and parameters) to its Sample.
    statistic: how Samples become numbers with intervals.
    ends: the lowest and the highest value that it can have.
    own: whether it compares a side with the original's own output, so that the baseline's number is that of no change.
    enough: why so many images give it no number; None where they do, as far as can be known before there are any.
    doc: its file's docstring. libraries: that it imports. extra: what installs them.
    """

    name: str
    version: int
    title: str
    params: type[P]
    needs: frozenset[Observable]
    better: Better
    unit: str
    measure: Callable[[Evidence, P], Sample]
    statistic: Statistic
    ends: tuple[float, float] = ENDLESS
    own: bool = False
    enough: Callable[[P, Sizes], Fault | None] | None = None
    doc: str = ""
    libraries: tuple[str, ...] = ()
    extra: str = ""

    @property
    def compared(self) -> Compared:
        return self.statistic.compared

    @property
    def gain(self) -> Literal["", "faster", "smaller"]:
        """What a ratio above 1 says of the candidate; "" where none is made."""
        if self.compared != "ratio":
            return ""
        return "faster" if self.better == "higher" or self.unit in ("ms", "s") else "smaller"

    @property
    def gate_words(self) -> tuple[str, ...]:
        """The bounds that a gate on it may give, what suits it best first."""
        margins = ("within", "worse_by") if self.better != "same" else ("within",)
        return (*((self.gain, "speedup") if self.gain else ()), *margins, "at_least", "at_most")

    @property
    def score(self) -> Callable[[Sample], Estimate]:
        return self.statistic.score

    @property
    def contrast(self) -> Callable[[Sample, Sample], Estimate]:
        return self.statistic.contrast

    @property
    def needs_data(self) -> bool:
        """Whether it looks at what a side makes of the evaluation data."""
        return bool(self.needs & OF_ITEMS)

    @property
    def quality(self) -> bool:
        """Whether it judges what comes out, and not what that costs."""
        return not self.needs & COST

    @property
    def timed(self) -> bool:
        """Whether it looks at interleaved timings."""
        return bool(self.needs & {"timings", "token_timings"})


def metric(
    *,
    version: int,
    title: str,
    params: type[P],
    needs: tuple[Observable, ...],
    better: Better,
    statistic: Statistic,
    unit: str = "",
    ends: tuple[float, float] = ENDLESS,
    own: bool = False,
    enough: Callable[[P, Sizes], Fault | None] | None = None,
    libraries: tuple[str, ...] = (),
    extra: str = "",
) -> Callable[[Callable[[Evidence, P], Sample]], Metric[P]]:
    """Turn a metric file's `measure` function into its record. The name is the file's, the help its docstring."""

    def record(measure: Callable[[Evidence, P], Sample]) -> Metric[P]:
        return Metric(
            name=measure.__module__.rsplit(".", 1)[1],
            version=version,
            title=title,
            params=params,
            needs=frozenset(needs),
            better=better,
            unit=unit,
            measure=measure,
            statistic=statistic,
            ends=ends,
            own=own,
            enough=enough,
            doc=sys.modules[measure.__module__].__doc__ or "",
            libraries=libraries,
            extra=extra,
        )

    return record
