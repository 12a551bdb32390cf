"""Floating-point operations of one whole call, GFLOP: what theory promises, to be held beside what was measured.

Of one image as the pipeline generates it (text encoders, every denoiser call, the decoder, and the encoder where it is given images), or of one prompt read and continued.
A multiply-add counts two; precision does not count, so that int8 has as many as float32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from compress.errors import PareError
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe import operations
from evaluation.values import Estimate, Sample, Statistic
from evaluation.verdict import statistics

COUNTS = "multiply-adds count two; precision not counted"


class Flops(Params):
    prompt_tokens: int = Field(32, ge=1, description="tokens of the prompt, for text")
    new_tokens: int = Field(64, ge=2, description="tokens written behind it, for text")


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    """How many times fewer the candidate needs."""
    found = statistics.EXACT.contrast(candidate, baseline)
    unknown = next((s.note for s in (candidate, baseline) if np.isnan(s.values).any()), "")
    return replace(found, note=unknown)


@metric(
    version=1,
    title="operations of a call",
    params=Flops,
    needs=("files",),
    better="lower",
    statistic=Statistic("ratio", statistics.EXACT.score, contrast),
    unit="GFLOP",
)
def measure(evidence: Evidence, params: Flops) -> Sample:
    text = evidence.artifact.writes_text
    lengths = {"prompt_tokens": params.prompt_tokens, "new_tokens": params.new_tokens} if text else {}
    try:
        total, note = _count(evidence, params)
    except PareError as error:
        total, note = float("nan"), f"not counted: {error.problems[0].message}"
    except Exception as error:  # on shapes alone a class may fail in any way that its library knows
        total, note = float("nan"), f"not counted: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Sample(("call",), np.array([total / 1e9]), protocol={"counts": COUNTS, "batch": 1, **lengths}, note=note)


def _count(evidence: Evidence, params: Flops) -> tuple[float, str]:
    """Operations, and which components they fall on."""
    if evidence.artifact.writes_text:
        return operations.count_text(evidence.artifact, params.prompt_tokens, params.new_tokens), ""
    parts = operations.count_image(evidence.artifact, evidence.opening, evidence.call)
    total = sum(parts.values())
    return total, ", ".join(f"{name} {100 * count / total:.0f}%" for name, count in parts.items())
