"""`keep: if_faster` on models that really run: fewer steps are kept, more are not, and a run says both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compress
from evaluation.comparison import Comparison
from evaluation.observe import hardware
from tests.tiny import tiny_diffusion

pytestmark = pytest.mark.alone  # it compares times with each other

RECIPE = """schema: 1
name: kept
model: ./model
data: {evaluate: zoo://digits/test}
stages:
  - accelerate.steps: {steps: 2, id: fewer}
    keep: if_faster
  - accelerate.steps: {steps: 12, id: more}
    keep: if_faster
evaluate:
  baseline: {steps: 8}
  samples: 2
  timing_blocks: 7
  metrics: [latency, size]
gates:
  latency: {faster: 0.1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("kept")
    tiny_diffusion(found)
    (found / "r.yaml").write_text(RECIPE)
    return found


@pytest.fixture(scope="module")
def ran(folder: Path) -> Iterator[Comparison]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "facts", lambda device: {"processor": "a machine"})
        yield compress.run(folder / "r.yaml", cache=folder / "cache", out=folder / "out")


def facts(comparison: Comparison, id: str) -> Any:
    return next(row["facts"] for row in comparison.stages if row["id"] == id)


def test_fewer_steps_are_kept_and_more_are_not(ran: Comparison) -> None:
    fewer, more = (facts(ran, id) for id in ("fewer", "more"))
    assert (fewer["kept"], more["kept"]) == (True, False)
    assert fewer["times as fast"][1] > 1.5
    assert more["times as fast"][1] < 0.7
    assert ran.candidate.call["num_inference_steps"] == 2
    assert [made["params"]["steps"] for made in ran.candidate.lineage] == [2]
    assert ran.stages[0]["digest"] == ran.stages[1]["digest"] == ran.candidate.digest


def test_the_waterfall_passes_over_what_was_not_kept(ran: Comparison) -> None:
    _, fewer, more = ran.steps
    assert fewer.speed is not None
    assert more.speed is not None
    assert (more.speed.cumulative, more.speed.marginal) == (fewer.speed.cumulative, None)
    assert (fewer.note, more.note) == ("", facts(ran, "more")["decision"])
    row = next(row for row in ran.rows if row.metric == "latency")
    assert fewer.speed.cumulative == row.contrast  # it is the candidate, which was timed for the verdict


def test_the_reports_say_it_and_a_second_run_decides_nothing_anew(ran: Comparison, folder: Path) -> None:
    for name in ("report.md", "report.html"):
        shown = (folder / "out" / name).read_text()
        assert "not kept: 0." in shown
        assert "kept: " in shown
    plan = compress.plan(folder / "r.yaml", cache=folder / "cache")
    assert all(node.cached for node in plan.nodes)
    assert plan.nodes[1].reported.endswith(facts(ran, "more")["decision"])
