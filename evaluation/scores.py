"""Numbers and what they rest on: samples per unit, estimates with intervals, and the record that makes a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from compress.params import Params

if TYPE_CHECKING:
    from evaluation.evidence import Evidence

P = TypeVar("P", bound=Params)
Better = Literal["lower", "higher", "same"]
Needs = Literal["images", "texts", "timings", "files"]


@dataclass(frozen=True)
class Sample:
    """What one side showed, unit by unit: `values` is [n] or [n, d], row i belongs to `unit_ids[i]`.

    reference: what `values` is held against, for metrics that compare distributions ([m, d], the real pictures' features).
    """

    unit_ids: tuple[str, ...]
    values: NDArray[np.float64]
    reference: NDArray[np.float64] | None = None
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval. `n` counts units; `note` says what a reader must know to read it right."""

    value: float
    low: float
    high: float
    n: int
    note: str = ""


@dataclass(frozen=True)
class Metric(Generic[P]):
    """One metric. The name is its file's.

    measure: one side's evidence (and parameters) to its Sample.
    score: one side's Sample alone to its Estimate.
    contrast: candidate's and baseline's Samples over the same units to the Estimate of the difference
        (candidate − baseline), or of the ratio when `compared` is "ratio" (baseline ÷ candidate: above 1 is better,
        for times, sizes and memory).
    """

    name: str
    version: int
    title: str
    params: type[P]
    tasks: frozenset[str]
    needs: Needs
    better: Better
    unit: str
    compared: Literal["difference", "ratio"]
    measure: Callable[[Evidence, P], Sample]
    score: Callable[[Sample, P], Estimate]
    contrast: Callable[[Sample, Sample, P], Estimate]
    doc: str = ""
    libraries: tuple[str, ...] = ()


Status = Literal["pass", "fail", "inconclusive", "not gated"]


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a row: the bound it applied, and why."""

    status: Status
    gate: str = ""  # the gate in words: "within 1%, both sides"
    why: str = ""
    n_needed: int = 0  # about how many units would decide it; 0 when decided


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a metric on both sides, their contrast, and the gate's verdict."""

    metric: str
    title: str
    unit: str
    better: Better
    compared: Literal["difference", "ratio"]
    baseline: Estimate
    candidate: Estimate
    contrast: Estimate
    verdict: Verdict
    noise: Estimate | None = None  # the baseline against itself (A/A), where it was measured
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
    """One model of the comparison: what it is and how it was called."""

    name: str
    digest: str
    engine: str  # e.g. "torch float32 eager" or "unet: openvino int8"
    call: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Picture:
    """One prompt painted by both sides from the same noise; uint8 arrays [height, width, 3]."""

    unit_id: str
    caption: str
    baseline: NDArray[np.uint8]
    candidate: NDArray[np.uint8]


@dataclass(frozen=True)
class Completion:
    """One text prompt continued by both sides, greedily."""

    unit_id: str
    prompt: str
    baseline: str
    candidate: str
    first_divergent_token: int  # -1 when they agree to the end


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
    pictures: tuple[Picture, ...] = ()
    completions: tuple[Completion, ...] = ()
    warnings: tuple[str, ...] = ()
    directory: str = ""  # where result.json and the reports lie

    @property
    def status(self) -> Status:
        """fail wins over inconclusive, which wins over pass."""
        seen = {row.verdict.status for row in self.rows}
        order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
        return next((s for s in order if s in seen), "not gated")

    @property
    def exit_code(self) -> int:
        return {"fail": 1, "inconclusive": 4}.get(self.status, 0)
