"""Numbers and what they rest on: samples per unit, estimates with intervals, and the record that makes a metric."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from compress.params import Fault, Params
from compress.recipe.gates import Gate
from compress.tasks import COST, OF_ITEMS, Observable

if TYPE_CHECKING:
    import pandas
    from numpy.typing import NDArray

    from evaluation.comparison.control_rows import Control
    from evaluation.evidence import Evidence

P = TypeVar("P", bound=Params)
Better = Literal["lower", "higher", "same"]
Compared = Literal["difference", "ratio"]


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


def respelt(written: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol or a side out of a result, as it would be written today."""
    return {
        name: OLD_SPELLING.get(value, value) if isinstance(value, str) else value for name, value in written.items()
    }


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


ENDLESS = (-math.inf, math.inf)
IMAGES = "a folder of images"  # the engine of a side that is no model
ENDPOINT = "an endpoint"  # begins the engine of a side that a server has
OWN_REFERENCE = "the baseline's images"  # in a score's protocol: what it was compared with where there are no real ones
# How results of before 0.1 spell what protocols and sides say; they are read so for one version.
OLD_SPELLING = {"a folder of pictures": IMAGES, "the data's pictures": "the data's images", "pictures": "images"}
ADAPTER = "adapter"  # what a lineage calls the fusing of adapters


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


Status = Literal["pass", "fail", "inconclusive", "not gated"]


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a row: the bound it applied, and why."""

    status: Status
    gate: str = ""  # the gate in words: "within 1%, both sides"
    why: str = ""
    n_needed: int = 0  # about how many units would decide it; 0 when decided
    setting: str = ""  # what to set so that there are as many: "evaluate.samples: 517"


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a metric on both sides, their contrast, and the gate's verdict."""

    metric: str
    title: str
    unit: str
    better: Better
    compared: Compared
    baseline: Estimate
    candidate: Estimate
    contrast: Estimate
    verdict: Verdict
    noise: Estimate | None = None  # the baseline against itself (A/A), where it was measured
    gate: Gate | None = None
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contribution:
    """A metric after a stage. `cumulative` is its contrast with the baseline; `marginal` that with the stage before, None
    where either has no number."""

    metric: str
    title: str
    cumulative: Estimate
    marginal: Estimate | None = None


@dataclass(frozen=True)
class Step:
    """How far the chain had come after a stage. The baseline, from which it starts, is the step without a stage.

    size_bytes: of the weights on disk. quality: the gated metrics, on fewer items than the rows.
    speed, quality: None and left out where there is no number; `note` says why.
    """

    stage: str
    size_bytes: int
    speed: Contribution | None = None
    quality: tuple[Contribution, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Side:
    """One model of the comparison: what it is and how it was called.

    read_bytes: of weights that one step of its main component reads, torch's in the type they were opened in, an engine's as
        they are stored; 0 where nobody knows.
    unheeded: of the settings that reports tell of, those that it does not have or ignores; no result of before tells them.
    """

    name: str
    digest: str
    engine: str  # e.g. "torch float32 eager" or "unet: openvino int8, called the lean way"
    call: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    read_bytes: int = 0
    unheeded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """One prompt generated by both sides from the same noise; uint8 arrays [height, width, 3].

    given: what both were made of beside the prompt, in words, each an array too.
    """

    unit_id: str
    caption: str
    baseline: NDArray[np.uint8]
    candidate: NDArray[np.uint8]
    why: str = ""  # it is shown: "" for the first prompts, which nobody chose
    given: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class Worst:
    """An item that came out worse than the baseline's by a metric, with both values."""

    metric: str
    unit_id: str
    text: str
    baseline: float
    candidate: float


@dataclass(frozen=True)
class Completion:
    """One text prompt continued by both sides, greedily."""

    unit_id: str
    prompt: str
    baseline: str
    candidate: str
    first_divergent_token: int  # -1 when they agree to the end; a word, where a server does not tell its tokens


@dataclass(frozen=True)
class Handed:
    """The candidate as its reader gets it: the folder in which it lies, lines of Python that load and call it, and how long it
    stays there, where that is not for good."""

    path: str
    code: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The whole result: what `compress.run` returns, and what `--json` prints as `to_dict()`."""

    name: str
    task: str
    baseline: Side
    candidate: Side
    rows: tuple[Row, ...]
    machine: Mapping[str, Any]
    recipe: str  # its YAML text
    stages: tuple[Mapping[str, Any], ...] = ()  # per stage: id, stage, key, cached, seconds, size_bytes, facts
    steps: tuple[Step, ...] = ()  # from the baseline to the candidate, one a stage
    images: tuple[Image, ...] = ()
    completions: tuple[Completion, ...] = ()
    worst: tuple[Worst, ...] = ()
    warnings: tuple[str, ...] = ()
    directory: str = ""  # where result.json and the reports lie
    holds: int = 0  # items in the evaluation data; 0: not known, or as many as wanted
    handed: Handed | None = None  # None: the candidate is no model, but images
    controls: tuple[Control, ...] = ()  # what other branches of the recipe left

    def __repr__(self) -> str:
        return f"<comparison {self.name}: {self.status}, {len(self.rows)} metrics; compress.text tells more>"

    def records(self) -> list[dict[str, Any]]:
        """A tidy record a row: every number in a column of its own."""
        return [_record(row) for row in self.rows]

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a tidy frame, one line a metric, with `run` and `task` in front."""
        import pandas

        return pandas.DataFrame([{"run": self.name, "task": self.task, **record} for record in self.records()])

    @property
    def status(self) -> Status:
        """fail wins over inconclusive, which wins over pass."""
        seen = {row.verdict.status for row in self.rows}
        order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
        return next((s for s in order if s in seen), "not gated")

    @property
    def exit_code(self) -> int:
        return {"fail": 1, "inconclusive": 4}.get(self.status, 0)


def _record(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {n: getattr(row, n) for n in ("metric", "title", "unit", "better", "compared")}
    for name in ("baseline", "candidate", "contrast"):
        estimate = getattr(row, name)
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    noise = (row.noise.low, row.noise.high) if row.noise else (None, None)
    found |= {"n": row.contrast.n, "noise_low": noise[0], "noise_high": noise[1]}
    return found | {"verdict": row.verdict.status, "gate": row.verdict.gate, "n_needed": row.verdict.n_needed}
