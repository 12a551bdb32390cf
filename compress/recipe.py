"""What the user asked for, as frozen values with every default filled in. `reading.py` makes them from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.params import Params

SCHEMA_VERSION = 1


class DataSpec(Params):
    """Where items come from. Training and evaluation never share one."""

    train: str = Field("", description="source of training items: zoo://…/train, an image folder, a text or JSONL file")
    calibration: str = Field("", description="source of calibration items, for quantization and importance scores")
    evaluate: str = Field("", description="source of evaluation items; must share no item with the two others")


class BaselineSpec(Params):
    """What the candidate is compared with: the recipe's own model, run as stated here."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number type of the baseline; default: the checkpoint's own"
    )
    steps: int | None = Field(None, ge=1, description="denoising steps; default: the pipeline's own")
    guidance: float | None = Field(
        None, ge=0, description="classifier-free guidance scale, for both sides; default: the pipeline's own"
    )


class EvalSpec(Params):
    """What is measured, on how much."""

    baseline: BaselineSpec = Field(default_factory=lambda: BaselineSpec(), description="how the baseline is run")
    metrics: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="metrics to measure: a list of names, or of {name: {parameters}}"
    )
    samples: int = Field(256, ge=2, description="prompts or documents that quality is measured on")
    stage_samples: int = Field(
        64,
        ge=0,
        description="prompts or documents that each stage is scored on, and timed in a third of the blocks, to show what "
        "it gave and cost; 0 leaves that out",
    )
    batch: int = Field(16, ge=1, description="items per call while collecting quality evidence")
    timing_batch: int = Field(1, ge=1, description="prompts or sequences per timed call")
    timing_blocks: int = Field(20, ge=5, description="interleaved blocks per side; each gives one paired ratio")
    prompt_tokens: int = Field(32, ge=1, description="tokens of each timed text prompt")
    new_tokens: int = Field(64, ge=2, description="tokens written per timed text prompt, exactly")
    starts: int = Field(3, ge=1, description="fresh processes a side that peak memory and cold start are measured in")
    continuations: int = Field(
        32,
        ge=0,
        description="documents whose start of `prompt_tokens` both sides continue greedily by `new_tokens` or fewer",
    )
    seed: int = Field(0, ge=0, description="seed of prompts' noise; noise belongs to (seed, prompt id)")


class Gate(Params):
    """What a metric must hold for the verdict to be good. Exactly one of the bounds is given."""

    within: str | float | None = Field(
        None, description="equivalence margin: '1%' of the baseline, or an absolute number"
    )
    worse_by: str | float | None = Field(
        None, description="non-inferiority margin in the metric's bad direction: '5%' or a number"
    )
    speedup: float | None = Field(
        None, gt=0, description="least ratio baseline ÷ candidate of a time, a size or a memory"
    )
    at_least: float | None = Field(
        None, description="least value of the candidate itself, for a metric that should be high"
    )
    at_most: float | None = Field(
        None, description="greatest value of the candidate itself, for a metric that should be low"
    )
    two_sided: bool | None = Field(
        None, description="whether rising is as suspect as falling; default: the metric's own"
    )


@dataclass(frozen=True)
class StepSpec:
    """One stage of the chain. `inputs` names further artifacts by role, such as the teacher: an id, or "source"."""

    id: str
    stage: str
    params: Params
    after: str  # id of the step it continues, or "source"
    components: tuple[str, ...] = ()  # empty: the denoiser, or the language model
    inputs: Mapping[str, str] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `place` maps a dotted path such as `stages.0.bits` to `file:line:column`."""

    name: str
    model: str
    seed: int
    trust_remote_code: bool
    data: DataSpec
    stages: tuple[StepSpec, ...]
    evaluate: EvalSpec
    gates: Mapping[str, Gate]
    place: Mapping[str, str]
    source: str = ""  # the text it was read from, for the report
    file: str = ""
    overrides: tuple[str, ...] = ()  # what `--set` put into that text

    def folder(self, path: str) -> Path:
        """Where a relative file named at a dotted path starts: the folder of the recipe it is written in (which may be one
        that this recipe extends), or the current one for `--set` and for recipes made in Python."""
        file, *numbers = self.place.get(path, "").rsplit(":", 2)
        return Path(file).parent if len(numbers) == 2 else Path()
