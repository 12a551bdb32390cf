"""The GitHub Action's script as a job runs it: summary, outputs and exit code of every kind of verdict."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
GATE = ROOT / ".ci" / "gate"
RECIPE = "schema: 1\nname: tiny\nmodel: ./model\nstages: [prune.width: {{ratio: 0.5}}]\nevaluate: {{metrics: [size]}}\ngates:\n  size: {{smaller: {least}}}\n"


@dataclass(frozen=True)
class Job:
    code: int
    summary: str
    outputs: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    tiny_llama(folder / "model")
    (folder / "good.yaml").write_text(RECIPE.format(least=1.2))
    (folder / "strict.yaml").write_text(RECIPE.format(least=50))
    (folder / "wrong.yaml").write_text(RECIPE.format(least=1.2).replace("ratio", "ration"))
    return folder


def job(place: Path, **inputs: str) -> Job:
    """Run the script with these inputs of the action."""
    summary, outputs = place / "summary.md", place / "outputs.txt"
    for file in (summary, outputs):
        file.write_text("")
    bin_ = place / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / "pare").write_text(f'#!/bin/sh\nexec {sys.executable} -m compress.cli "$@"\n')
    (bin_ / "pare").chmod(0o755)
    environment = {f"PARE_{name.upper()}": value for name, value in inputs.items()}
    done = subprocess.run(
        [str(GATE)],
        cwd=place,
        check=False,
        capture_output=True,
        env={
            **os.environ,
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PARE_CACHE": str(place / "cache"),
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_OUTPUT": str(outputs),
            **environment,
        },
    )
    found = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    return Job(done.returncode, summary.read_text(), found)


def test_a_run_that_passes_leaves_its_report_in_the_summary(place: Path) -> None:
    found = job(place, recipe="good.yaml", out="runs/good")
    assert (found.code, found.outputs) == (0, {"verdict": "pass", "report": "runs/good"})
    assert "tiny: PASS" in found.summary
    assert (place / "runs/good/junit.xml").is_file()
    again = job(place, recipe="good.yaml", out="runs/again", against="runs/good")
    assert (again.code, again.outputs["verdict"]) == (0, "pass")
    assert (place / "runs/again/compared/report.md").is_file()


def test_a_gate_that_fails_fails_the_job_and_overrides_are_heard(place: Path) -> None:
    failed = job(place, recipe="strict.yaml", out="runs/strict")
    assert (failed.code, failed.outputs["verdict"]) == (1, "fail")
    assert "FAIL" in failed.summary
    eased = job(place, recipe="strict.yaml", out="runs/eased", set="gates.size.smaller=1.2\n\nname=eased")
    assert (eased.code, eased.outputs["verdict"]) == (0, "pass")
    assert "eased: PASS" in eased.summary


def test_a_matrix_has_all_its_reports_and_no_one_run_to_compare_with(place: Path) -> None:
    matrix = (place / "good.yaml").read_text().replace(
        "ratio: 0.5", 'ratio: "${ratio}"'
    ) + "matrix: {ratio: [0.5, 0.75]}\n"
    (place / "matrix.yaml").write_text(matrix)
    found = job(place, recipe="matrix.yaml", out="runs/matrix", against="runs/good")
    assert (found.code, found.outputs["verdict"]) == (2, "error")
    assert found.summary.count(": PASS") == 2
    assert "is one run, and the recipe has several" in found.summary


def test_a_mistake_is_an_error_with_its_place_in_the_summary(place: Path) -> None:
    found = job(place, recipe="wrong.yaml", out="runs/wrong")
    assert (found.code, found.outputs["verdict"]) == (2, "error")
    assert "ration" in found.summary
    assert "wrong.yaml:4" in found.summary


def test_the_action_gives_the_script_all_of_its_inputs() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (gate,) = (step for step in action["runs"]["steps"] if step.get("id") == "gate")
    given = {re.fullmatch(r"\$\{\{ inputs\.(.+) \}\}", value)[1] for value in gate["env"].values()}  # type: ignore[index]
    assert given | {"python"} == set(action["inputs"])
    assert all(name in GATE.read_text() for name in gate["env"])
    assert {f"steps.gate.outputs.{name}" in out["value"] for name, out in action["outputs"].items()} == {True}
