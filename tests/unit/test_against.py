"""Two runs compared with each other: paired where both kept samples, by ratios where each had its own baseline beside it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.catalogue import find_metric
from compress.errors import NotComparable, UserError
from compress.recipe.gates import Gate
from evaluation import report
from evaluation.comparison import Comparison, Side, samples
from evaluation.comparison.rows import row_of
from evaluation.comparison.two_runs import Run, against
from evaluation.report import speed_summary
from evaluation.values import Estimate, Sample

MACHINE = {"processor": "a machine", "threads": 2, "cores": 2, "flags": ["avx2"], "libraries": {"torch": "2.13"}}
GATES = {"perplexity": Gate(worse_by="5%"), "latency": Gate(speedup=2)}
PROTOCOL = {"samples": 60, "seed": 0, "data": "words"}
BASELINE = Side("baseline", "b" * 64, "torch float32 eager")


def documents(worse: float, seed: int = 1) -> Sample:
    """60 documents of 50 tokens, each token as many nats as the document's own difficulty and `worse` more."""
    nats = np.random.default_rng(0).normal(3, 0.2, 60) + np.random.default_rng(seed).normal(worse, 0.005, 60)
    rows = np.stack([50 * nats, np.full(60, 50.0), np.full(60, 200.0)], axis=1)
    return Sample(tuple(f"d{i}" for i in range(60)), rows, protocol={"softmax": "float32"})


def blocks(ms: float, seed: int, count: int = 40) -> Sample:
    drawn = ms * np.exp(np.random.default_rng(seed).normal(0, 0.02, count))
    return Sample(tuple(map(str, range(count))), drawn, protocol={"batch": 1, "work": 64})


def disk(megabytes: float) -> Sample:
    return Sample(("disk",), np.array([megabytes]), protocol={"counts": "weight files on disk"})


def run(
    folder: Path, *, worse: float = 0.0, ms: float = 20.0, base_ms: float = 100.0, size: float = 10.0, seed: int = 1
) -> Run:
    """A run as `pare run` leaves it, with `result.json` and samples."""
    found = {
        "perplexity": (documents(0.0), documents(worse, seed)),
        "latency": (blocks(base_ms, seed), blocks(ms, seed + 100)),
        "size": (disk(40.0), disk(size)),
    }
    rows = []
    for name, pair in found.items():
        metric = find_metric(name)
        samples.keep(folder / "samples", name, *pair)
        noise = Estimate(1.0, 0.99, 1.01, 40) if name == "latency" else None
        protocol = PROTOCOL if metric.quality else {}
        rows.append(row_of(metric, pair, protocol, GATES.get(name), noise))
    side = Side("candidate", f"candidate {worse} {ms}", "model: openvino")
    comparison = Comparison("nightly", "text_generation", BASELINE, side, tuple(rows), MACHINE, "name: nightly\n")
    report.write(comparison, folder)
    return Run(comparison, folder / "samples")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("old"))


def rows(found: Comparison) -> dict[str, Any]:
    return {row.metric: row for row in found.rows}


def changed(found: Run, **change: Any) -> Run:
    return replace(found, comparison=replace(found.comparison, **change))


# ---------------------------------------------------------------- what comes out


def test_a_run_against_itself_has_changed_nothing_and_passes(old: Run) -> None:
    found = against(old, old, False, "10%")
    assert found.status == "pass"
    assert rows(found)["perplexity"].contrast.value == rows(found)["perplexity"].contrast.high == 0
    assert rows(found)["latency"].contrast.value == 1
    assert rows(found)["size"].contrast.low == rows(found)["size"].contrast.high == 1
    assert (found.baseline.name, found.candidate.name) == ("reference", "candidate")


def test_quality_is_paired_document_by_document(old: Run, tmp_path: Path) -> None:
    """Both runs' perplexities differ far more between documents than between the runs."""
    found = rows(against(old, run(tmp_path, worse=0.01, seed=2), False, "10%"))["perplexity"]
    assert found.verdict.status == "pass"
    assert 0 < found.contrast.low < found.contrast.high < 0.05 * found.baseline.value
    assert found.contrast.high - found.contrast.low < 0.1 * (found.baseline.high - found.baseline.low)


@pytest.mark.parametrize(
    ("change", "row", "status"),
    [
        ({"worse": 0.1}, "perplexity", "fail"),
        ({"worse": math.log(1.05)}, "perplexity", "inconclusive"),
        ({"ms": 26.0}, "latency", "fail"),
        ({"ms": 20.5}, "latency", "pass"),
        ({"ms": 10.0}, "latency", "pass"),
    ],
)
def test_what_got_worse_is_found_by_its_own_row_alone(
    change: dict[str, float], row: str, status: str, old: Run, tmp_path: Path
) -> None:
    found = against(old, run(tmp_path, **change, seed=3), False, "10%")
    assert rows(found)[row].verdict.status == status
    assert [r.metric for r in found.rows if r.verdict.status in ("fail", "inconclusive")] == [row] * (status != "pass")
    assert found.exit_code == {"pass": 0, "fail": 1, "inconclusive": 4}[status]


def test_a_slower_machine_is_no_slower_candidate(old: Run, tmp_path: Path) -> None:
    """Everything took 1.5 times as long, on both sides of the new run: its ratio is what it was."""
    found = rows(against(old, run(tmp_path, ms=30.0, base_ms=150.0, seed=4), False, "10%"))["latency"]
    assert found.verdict.status == "pass"
    assert found.noise.value == pytest.approx(1 / 1.5, rel=0.05)  # how far the baseline itself drifted


def test_what_no_gate_held_is_reported_and_not_judged(old: Run, tmp_path: Path) -> None:
    found = rows(against(old, run(tmp_path, size=30.0), False, "10%"))["size"]
    assert found.verdict.status == "not gated"
    assert found.contrast.value == pytest.approx(1 / 3)


def test_a_gate_that_was_dropped_from_the_recipe_still_holds(old: Run, tmp_path: Path) -> None:
    bad = run(tmp_path, worse=0.1)
    bare = changed(bad, rows=tuple(replace(row, gate=None) for row in bad.comparison.rows))
    assert rows(against(old, bare, False, "10%"))["perplexity"].verdict.status == "fail"


def test_documents_that_got_worst_are_named(old: Run, tmp_path: Path) -> None:
    new = run(tmp_path, worse=0.1)
    reported = against(old, changed(new, worst=()), False, "10%").worst
    assert {w.metric for w in reported} == {"perplexity"}
    lost = [w.candidate - w.baseline for w in reported]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0.1


def test_libraries_that_changed_and_metrics_that_went_are_warned_of(old: Run, tmp_path: Path) -> None:
    new = run(tmp_path)
    new = changed(new, rows=new.comparison.rows[1:], machine={**MACHINE, "libraries": {"torch": "2.14"}})
    warnings = " ".join(against(old, new, False, "10%").warnings)
    assert "torch 2.13 → 2.14" in warnings
    assert "only the old run measured perplexity, and gated perplexity" in warnings


def test_a_gated_metric_that_is_no_longer_measured_is_not_passed(old: Run, tmp_path: Path) -> None:
    new = run(tmp_path)
    found = against(old, changed(new, rows=new.comparison.rows[1:]), False, "10%")
    assert rows(found)["perplexity"].verdict.status == "inconclusive"
    assert (found.status, found.exit_code) == ("inconclusive", 4)
    report.write(found, tmp_path / "out")
    assert "only the old run measured it" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("tolerance", ["abc", "10", "nan", "-5%", "nan%", ""])
def test_a_tolerance_is_a_share(tolerance: str, old: Run) -> None:
    with pytest.raises(UserError, match="is no tolerance"):
        against(old, old, False, tolerance)


def test_a_baseline_of_another_precision_is_another_baseline(old: Run) -> None:
    new = changed(old, baseline=replace(BASELINE, engine="torch bfloat16 eager"))
    with pytest.raises(NotComparable, match=r"different baselines.*bfloat16"):
        against(old, new, False, "10%")


def test_a_comparison_never_overwrites_a_run(old: Run, tmp_path: Path) -> None:
    for place in (old.samples.parent, old.samples.parent / "result.json"):
        with pytest.raises(UserError, match="overwrite"):
            compress.compare(place, place, out=old.samples.parent)


# ---------------------------------------------------------------- across machines


def test_another_machine_is_refused_in_a_sentence_that_names_the_way_out(old: Run, tmp_path: Path) -> None:
    other = changed(run(tmp_path), machine={**MACHINE, "processor": "another", "threads": 8})
    with pytest.raises(NotComparable) as caught:
        against(old, other, False, "10%")
    (problem,) = caught.value.problems
    assert "different machines: processor a machine and another, threads 2 and 8" in problem.message
    assert "--across-machines" in problem.fix
    assert caught.value.exit_code == 2


def test_across_machines_only_ratios_to_the_baseline_are_shown(old: Run, tmp_path: Path) -> None:
    other = changed(run(tmp_path, ms=10.0, base_ms=50.0), machine={**MACHINE, "processor": "twice as fast"})
    found = rows(against(old, other, True, "10%"))["latency"]
    assert found.baseline.value == pytest.approx(5, rel=0.05)
    assert found.candidate.value == pytest.approx(5, rel=0.05)
    assert found.unit == "× baseline"
    assert found.noise is None
    assert found.verdict.status == "pass"


def test_across_machines_a_speed_is_spoken_of_too(old: Run) -> None:
    for across in (False, True):
        assert speed_summary.answer(against(old, old, across, "10%")).startswith("Not shown: 1.000× ")


# ---------------------------------------------------------------- what cannot be compared


def with_protocol(found: Run, metric: str, **change: Any) -> Run:
    rows_ = tuple(
        replace(row, protocol={**row.protocol, **change}) if row.metric == metric else row
        for row in found.comparison.rows
    )
    return changed(found, rows=rows_)


def test_other_protocols_baselines_and_tasks_are_all_reported_at_once(old: Run) -> None:
    new = with_protocol(old, "perplexity", samples=200, seed=1)
    new = changed(new, baseline=replace(BASELINE, digest="c" * 64), task="text_to_image")
    with pytest.raises(NotComparable) as caught:
        against(old, new, False, "10%")
    reported = [problem.message for problem in caught.value.problems]
    assert len(reported) == 3
    assert "samples 60 and 200, seed 0 and 1" in reported[2]
    assert "different baselines: bbbbbbbbbbbb" in reported[1]
    assert all(problem.fix for problem in caught.value.problems)


def test_a_metric_that_no_gate_holds_and_whose_version_alone_differs_is_left_out(old: Run) -> None:
    ungated = changed(old, rows=tuple(replace(row, gate=None) for row in old.comparison.rows))
    found = against(ungated, with_protocol(ungated, "perplexity", version=99), False, "10%")
    assert list(rows(found)) == ["latency", "size"]
    assert (
        "perplexity is left out, measured by another version in each run: measure the old run again"
        in found.warnings[0]
    )
    for metric, change in (("perplexity", {"version": 99, "samples": 7}), ("perplexity", {"samples": 7})):
        with pytest.raises(NotComparable):
            against(ungated, with_protocol(ungated, metric, **change), False, "10%")


def test_a_gated_metric_whose_version_differs_is_refused_with_a_remedy(old: Run) -> None:
    with pytest.raises(NotComparable, match="perplexity was measured by different protocols: version") as caught:
        against(old, with_protocol(old, "perplexity", version=99), False, "10%")
    assert caught.value.problems[0].fix.startswith("measure the old run again: `pare run` of its recipe")


def test_other_data_are_reported_by_the_beginning_of_their_digests(old: Run) -> None:
    one, other = (with_protocol(old, "perplexity", data=letter * 64) for letter in "ab")
    with pytest.raises(NotComparable, match=r"protocols: data aaaaaaaaaaaa… and bbbbbbbbbbbb…") as caught:
        against(one, other, False, "10%")
    assert caught.value.problems[0].fix == "give both recipes the same data.evaluate"


def test_costs_of_other_samples_are_compared_and_quality_is_not(old: Run) -> None:
    for metric, change in (("size", {"samples": 7, "data": "b" * 64, "seed": 9}), ("latency", {"samples": 7})):
        assert against(old, with_protocol(old, metric, **change), False, "10%").status == "pass"
    for metric, change in (("perplexity", {"samples": 7}), ("latency", {"data": "b" * 64}), ("size", {"counts": "x"})):
        with pytest.raises(NotComparable, match=f"{metric} was measured by different protocols"):
            against(old, with_protocol(old, metric, **change), False, "10%")


def test_no_metric_in_common_is_no_comparison(old: Run) -> None:
    with pytest.raises(NotComparable, match="no metric in common"):
        against(old, changed(old, rows=()), False, "10%")


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"not safetensors")])
def test_samples_that_are_gone_or_broken_are_asked_for(damage: Any, old: Run, tmp_path: Path) -> None:
    new = run(tmp_path)
    damage(tmp_path / "samples" / "perplexity.safetensors")
    with pytest.raises(NotComparable, match="no samples of perplexity") as caught:
        against(old, new, False, "10%")
    assert "samples" in caught.value.problems[0].fix


def test_other_items_are_not_paired(old: Run, tmp_path: Path) -> None:
    new = run(tmp_path)
    moved = replace(documents(0.0), unit_ids=tuple(f"e{i}" for i in range(60)))
    samples.keep(tmp_path / "samples", "perplexity", moved, moved)
    with pytest.raises(NotComparable, match="different items"):
        against(old, new, False, "10%")


# ---------------------------------------------------------------- files


def test_two_folders_give_the_same_four_files_as_a_run(old: Run, tmp_path: Path) -> None:
    run(tmp_path / "new", worse=0.1)
    found = compress.compare(old.samples.parent, tmp_path / "new" / "result.json", out=tmp_path / "out")
    assert found.status == "fail"
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"result.json", "report.md", "report.html", "junit.xml"}
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "fail"
    assert "nightly against its reference" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no result"),
        ('{"schema_version": 1}', "schema 1"),
        ("[]", "is no result"),
        ('{"schema_version": 3}', "no result"),
    ],
)
def test_a_file_that_is_no_result_is_named(text: str, message: str, old: Run, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        compress.compare(tmp_path, old.samples.parent, out=tmp_path / "out")
    assert caught.value.problems[0].place == str(tmp_path / "result.json")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_named(old: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not read"):
        compress.compare(old.samples.parent, tmp_path / "nowhere", out=tmp_path / "out")


# ---------------------------------------------------------------- samples on disk


def test_samples_come_back_with_their_units_protocol_and_note(tmp_path: Path) -> None:
    one = Sample(("a", "b"), np.eye(2), np.ones((3, 2)), protocol={"resize": "pil", "samples": 2}, note="why")
    other = Sample(("a", "b"), np.zeros((2, 2)), moments=(np.ones(2), np.eye(2)))
    samples.keep(tmp_path, "fid", one, other)
    for before, after in zip((one, other), samples.read(tmp_path, "fid"), strict=True):
        assert (after.unit_ids, after.protocol, after.note) == (before.unit_ids, before.protocol, before.note)
        assert np.array_equal(after.values, before.values)
        assert (after.reference is None) == (before.reference is None)
        assert (after.moments is None) == (before.moments is None)
    assert np.array_equal(samples.read(tmp_path, "fid")[1].moments[1], np.eye(2))  # type: ignore[index]
