"""A recipe with two branches, run: the last step's model is the candidate, the other branch's stands beside it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import compress
from evaluation.observe import hardware
from evaluation.report import result
from tests.tiny import tiny_diffusion

RECIPE = """schema: 1
name: branches
model: ./model
data: {evaluate: zoo://digits/test}
stages:
  - accelerate.steps: {steps: 2, id: fewer}
  - accelerate.steps: {steps: 1, from: source}
evaluate:
  baseline: {steps: 4}
  samples: 6
  stage_samples: 2
  timing_blocks: 5
  metrics: [psnr, latency, size]
  controls: [fewer]
gates:
  psnr: {at_least: 1}
  size: {smaller: 2}
"""


def test_a_branch_is_run_and_held_against_baseline_and_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "facts", lambda device: {"processor": "a machine"})
    tiny_diffusion(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    found = compress.run(tmp_path / "recipe.yaml", out=tmp_path / "runs", cache=tmp_path / "cache")
    (control,) = found.controls
    assert [stage["id"] for stage in found.stages] == ["fewer", "accelerate.steps"]
    assert [step.stage for step in found.steps] == ["", "accelerate.steps"]  # the chain is the candidate's alone
    calls = [dict(side.call)["num_inference_steps"] for side in (found.baseline, control.side, found.candidate)]
    assert calls == [4, 2, 1]
    rows = {row.metric: row for row in control.rows}
    assert list(rows) == ["psnr", "latency", "size"]
    assert (rows["psnr"].contrast.n, rows["latency"].over.n) == (6, 5)
    assert rows["psnr"].over.value == pytest.approx(found.rows[0].candidate.value - rows["psnr"].score.value)
    assert rows["size"].verdict.status == "fail"
    assert "size on disk" in next(
        line for line in (Path(found.directory) / "report.md").read_text().split("\n") if "Beside" in line
    )
    kept = json.loads((Path(found.directory) / "result.json").read_text())
    jsonschema.validate(kept, result.schema())
    assert kept["controls"][0]["stage"] == "fewer"
