"""How far each stage got: every model of the chain against the baseline, and what each stage alone gave and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from compress.commands.run import chain_of
from compress.errors import StageFailed
from compress.events import Event, silent
from compress.model.describing import describe
from compress.opening import open_task
from compress.recipe.gates import Gate
from compress.recipe.values import BaselineSpec
from evaluation.comparison import Comparison, Step, waterfall
from evaluation.comparison.compare import compare
from evaluation.comparison.sides import viewpoints
from evaluation.observe import hardware
from evaluation.observe.timing import time_views
from evaluation.report import html, markdown, result
from tests.tiny import tiny_diffusion, tiny_llama
from tests.unit.test_compare import CAPTIONS, SPEC, TEXTS, Stand, data

GATES = {"perplexity": Gate(within="1%"), "throughput": Gate(speedup=1.0)}
METRICS: dict[str, Any] = {"perplexity": {}, "latency": {}, "throughput": {}}


@pytest.fixture(scope="module", autouse=True)
def known_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "facts", lambda device: {"processor": "a machine"})
        yield


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    """Baseline, and a candidate that came there by a stage in between, which `chain` names."""
    folder = tmp_path_factory.mktemp("writers")
    one, _, other = (replace(describe(tiny_llama(folder / str(s), seed=s)), digest=f"llama {s}") for s in range(3))
    return Stand(folder, one, other, data(TEXTS), SPEC.model_copy(update={"stage_samples": 4, "timing_blocks": 9}))


def between(stand: Stand) -> Any:
    return replace(describe(stand.folder / "1"), digest="llama 1")


def chain(stand: Stand) -> Any:
    return (("cut", between(stand)), ("heal", stand.candidate))


@pytest.fixture(scope="module")
def found(writers: Stand) -> tuple[Comparison, list[Event]]:
    recorded: list[Event] = []
    request = writers.request(writers.folder / "out", METRICS, GATES, chain=chain(writers))
    return compare(request, recorded.append), recorded


def quality(step: Step) -> Any:
    return step.quality[0]


def test_there_is_a_step_for_the_baseline_and_each_stage(found: Any, writers: Stand) -> None:
    steps = found[0].steps
    assert [s.stage for s in steps] == ["", "cut", "heal"]
    assert [s.note for s in steps] == ["", "", ""]
    weights = (writers.folder / "1" / "model.safetensors").stat().st_size
    assert [s.size_bytes for s in steps] == [weights] * 3
    assert (steps[0].speed, steps[0].quality) == (None, ())


def test_quality_is_that_of_the_first_items_alone(found: Any, writers: Stand, tmp_path: Path) -> None:
    """The same as a comparison that had no more items, though the candidate's evidence was cut out of the verdict's."""
    spec = writers.spec.model_copy(update={"samples": 4, "metrics": {"perplexity": {}}})
    for step, artifact in zip(found[0].steps[1:], (between(writers), writers.candidate), strict=True):
        request = replace(writers.request(tmp_path, {}), spec=spec, candidate=artifact)
        alone = compare(request, silent).rows[0].contrast
        assert quality(step).cumulative.n == 4
        assert quality(step).cumulative.value == pytest.approx(alone.value, rel=1e-4)
        assert quality(step).cumulative.low == pytest.approx(alone.low, rel=1e-4)


def test_what_a_stage_alone_changed_is_held_against_the_stage_before(found: Any) -> None:
    _, cut, heal = found[0].steps
    assert quality(cut).marginal == quality(cut).cumulative
    assert quality(heal).marginal.value == pytest.approx(quality(heal).cumulative.value - quality(cut).cumulative.value)
    assert heal.speed.marginal.value == pytest.approx(heal.speed.cumulative.value / cut.speed.cumulative.value)
    one, other = cut.speed.marginal, cut.speed.cumulative  # the baseline's own speed-up is exact
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    for step in (cut, heal):
        assert step.speed.marginal.low < step.speed.marginal.value < step.speed.marginal.high


def test_speed_is_the_gated_time_in_fewer_blocks_and_the_candidates_is_the_verdicts(found: Any) -> None:
    _, cut, heal = found[0].steps
    row = next(r for r in found[0].rows if r.metric == "throughput")
    assert (cut.speed.metric, cut.speed.title) == ("throughput", "throughput")
    assert cut.speed.cumulative.n == waterfall.FEWEST_BLOCKS
    assert heal.speed.cumulative == row.contrast
    assert row.contrast.n == 9


def test_the_candidate_is_neither_scored_nor_timed_twice(found: Any) -> None:
    starts = [e.what for e in found[1] if e.kind == "progress" and e.done == 0]
    assert starts.count("timing, interleaved") == 2  # the verdict, and the stage in between
    assert "reading with the model after cut" in starts
    assert "reading with the model after heal" not in starts
    done = [(e.done, e.total) for e in found[1] if e.what == "each stage against the baseline"]
    assert done == [(0, 2), (1, 2), (2, 2)]


def test_steps_come_back_from_the_result_and_show_in_the_reports(found: Any) -> None:
    data = result.to_dict(found[0])
    jsonschema.validate(data, result.schema())
    assert result.from_dict(data).steps == found[0].steps
    assert "| cut | " in markdown.render(found[0])
    assert "Speed against quality" in html.render(found[0])


def test_a_machine_that_stays_busy_is_heard_of_once_and_the_report_has_the_worst(
    writers: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict, the stage in between and a control are timed, each for itself."""
    shares = iter((0.3, 0.5, 0.4))
    monkeypatch.setattr("evaluation.observe.contention.share_of_others", lambda *readings: next(shares))
    spec = writers.spec.model_copy(update={"controls": ("cut",)})
    stages, recorded = chain(writers), list[Event]()
    request = writers.request(tmp_path, {"throughput": {}}, GATES, chain=stages, left={"cut": stages[0][1]})
    found = compare(replace(request, spec=spec.model_copy(update={"metrics": {"throughput": {}}})), recorded.append)
    assert next(shares, None) is None
    heard = [event.message for event in recorded if event.kind == "warning" and "processes" in event.message]
    written = [message for message in found.warnings if "processes" in message]
    assert [message[:24] for message in heard] == ["other processes took 30%"]
    assert [message[:32] for message in written] == ["timing: other processes took 50%"]
    assert found.machine["others_share"] == 0.3  # of the verdict's own


@pytest.mark.parametrize("samples", [0, 100])
def test_nothing_is_measured_for_no_samples_and_no_more_than_there_are(
    writers: Stand, tmp_path: Path, samples: int
) -> None:
    stand = replace(writers, spec=writers.spec.model_copy(update={"stage_samples": samples}))
    steps = compare(stand.request(tmp_path, {"perplexity": {}}, GATES, chain=chain(writers)), silent).steps
    if samples:
        assert quality(steps[2]).cumulative.n == SPEC.samples
    else:
        assert steps == ()


def test_only_what_the_recipe_asks_for_is_measured(writers: Stand, tmp_path: Path, monkeypatch: Any) -> None:
    """No gate on quality and no time among the metrics: sizes alone, and no model is opened."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("compress.opening.open_task", refuse)
    steps = compare(writers.request(tmp_path, {"size": {}}, chain=chain(writers)), silent).steps
    assert [(s.speed, s.quality, s.note) for s in steps] == [(None, (), "")] * 3
    assert compare(writers.request(tmp_path, {"size": {}}), silent).steps == ()


def test_a_stage_that_cannot_be_scored_or_timed_says_so_and_ends_no_run(
    writers: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise StageFailed("it generated a constant image", fix="look at the last stage")

    def out_of_luck(*args: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(waterfall, "collect", broken)
    monkeypatch.setattr(waterfall, "time_views", out_of_luck)
    request = writers.request(tmp_path, METRICS, GATES, chain=chain(writers))
    _, cut, heal = compare(request, silent).steps
    assert (cut.speed, cut.quality) == (None, ())
    assert cut.note == (
        "quality not measured: it generated a constant image; speed not measured: RuntimeError: out of luck"
    )
    assert heal.speed.marginal is None
    assert quality(heal).marginal is None
    assert quality(heal).cumulative.n == 4
    assert heal.note == ""


def test_a_stage_that_only_changes_the_call_counts_as_one(tmp_path: Path) -> None:
    """Two steps instead of four, on the same weights: less work, other images."""
    one = replace(describe(tiny_diffusion(tmp_path / "model")), digest="unet")
    quick = one.calling(num_inference_steps=2)
    spec = SPEC.model_copy(update={"baseline": BaselineSpec(steps=4), "stage_samples": 4})
    stand = Stand(tmp_path, one, quick.calling(num_inference_steps=1), data(CAPTIONS), spec)
    links = (("half", quick), ("quarter", stand.candidate))
    request = stand.request(tmp_path / "out", {"clip_score": {}}, {"clip_score": Gate(within="1%")}, chain=links)
    _, half, quarter = compare(request, silent).steps
    assert quality(half).cumulative.value != quality(quarter).cumulative.value
    assert quality(quarter).marginal.value == pytest.approx(
        quality(quarter).cumulative.value - quality(half).cumulative.value, abs=1e-6
    )


def test_both_sides_of_a_timing_are_called_as_their_viewpoints_say(tmp_path: Path) -> None:
    one = replace(describe(tiny_diffusion(tmp_path / "model")), digest="unet")
    stand = Stand(tmp_path, one, one.calling(num_inference_steps=2), data(CAPTIONS), SPEC)
    base, candidate = viewpoints(stand.request(tmp_path, {}))
    base = replace(base, call={"num_inference_steps": 3})
    timed = time_views(open_task(one), open_task(one), base, candidate, SPEC, silent)
    assert (timed.baseline.work, timed.candidate.work) == (3, 2)
    assert len(timed.candidate.seconds) == SPEC.timing_blocks


def test_the_chain_leads_to_the_candidate_and_leaves_out_what_only_another_stage_reads() -> None:
    def done(name: str, after: str) -> Any:
        return SimpleNamespace(id=name, after=after, artifact=f"{name}'s")

    made = [done("cut", "source"), done("teacher", "source"), done("heal", "cut"), done("build", "heal")]
    assert chain_of(made) == (("cut", "cut's"), ("heal", "heal's"), ("build", "build's"))
    assert chain_of([]) == ()


def test_the_first_items_of_evidence_are_what_they_were(writers: Stand) -> None:
    from evaluation.observe.collect import collect

    base, _ = viewpoints(writers.request(writers.folder, {}))
    whole = collect(base, (writers.folder / "evidence",), "baseline", silent)
    few = whole.first(2)
    assert few.unit_ids == whole.unit_ids[:2]
    assert all(np.array_equal(a, b) for a, b in zip(few.token_logprobs, whole.token_logprobs[:2], strict=True))
    assert (few.bytes_read, few.protocol["samples"]) == (whole.bytes_read[:2], 2)
    assert whole.first(100).protocol["samples"] == 6
