"""How long things will take: in proportion to what they took, along a line where one was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.catalogue import find_stage, stage_names, task_names
from compress.model.describing import describe
from compress.planning import durations
from compress.planning.durations import Line, Run, Work, evaluation_work, expected, noted_as, remember
from compress.recipe.values import EvalSpec
from compress.store.cache import Cache
from tests.fakes import language_model, pipeline
from tests.programs.durations import fitted

BILLION = 1_000_000_000
LINE = Line(fixed=10, each=2, start=5)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    found = Cache(tmp_path / "cache")
    found.root.mkdir()
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of two stages."""
    known: Mapping[str, Line] = {"demo.cut": LINE, "demo.tune": Line(1, 1)}
    monkeypatch.setattr(durations, "lines", lambda: known)


@pytest.mark.parametrize(
    ("parameters", "rounds", "seconds"),
    [(100, 6, 7.0), (200, 6, 14.0), (25, 6, 1.75), (401, 6, None), (24, 6, None), (100, 6000, 7000.0), (50, 3, 1.75)],
)
def test_without_a_line_a_time_goes_with_the_work_and_is_held_back_for_other_sizes(
    parameters: int, rounds: int, seconds: float | None, cache: Cache
) -> None:
    remember(cache, "demo.other", 7, Work(100, 6))
    assert expected(cache, "demo.other", Work(parameters, rounds)) == seconds


@pytest.mark.usefixtures("drawn")
def test_a_line_tells_what_never_ran_and_the_machines_own_runs_how_fast_it_is(cache: Cache) -> None:
    wanted = Work(BILLION, 3, 4)
    assert expected(cache, "demo.cut", wanted) == expected(cache, "demo.cut if_faster", wanted) == 10 + 2 * 3 + 5 * 4
    remember(cache, "demo.tune", 22, Work(10 * BILLION))  # twice what its line says
    assert expected(cache, "demo.cut", wanted) == 2 * 36
    remember(cache, "demo.cut", 6, Work(BILLION))  # half of it
    assert expected(cache, "demo.cut", Work(BILLION)) == 6
    assert 18 < (expected(cache, "demo.cut", wanted) or 0) < 36  # three times as long as what was seen


@pytest.mark.usefixtures("drawn")
def test_the_run_of_the_nearest_size_counts_and_less_the_further_away(cache: Cache) -> None:
    remember(cache, "demo.cut", 4 * LINE.at(Work(BILLION)), Work(BILLION))
    remember(
        cache, "demo.tune", 1001, Work(1000 * BILLION)
    )  # as its line says, so that all in all things take (4 + 1) / 2
    sizes = [Work(factor * BILLION) for factor in (1, 2, 100, 10_000)]
    speeds = [(expected(cache, "demo.cut", size) or 0) / LINE.at(size) for size in sizes]
    assert speeds[0] == 4
    assert speeds == sorted(speeds, reverse=True)
    assert 2.5 < speeds[-1] < 3
    remember(cache, "demo.cut", LINE.at(Work(100 * BILLION)), Work(100 * BILLION))
    assert expected(cache, "demo.cut", Work(100 * BILLION)) == pytest.approx(LINE.at(Work(100 * BILLION)))
    assert expected(cache, "demo.cut", Work(BILLION)) == 4 * LINE.at(Work(BILLION))


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("seen", "counts"), [((6, 60), 6), ((60, 6), 6), ((6, 60, 50), 50), ((6, 60, 7, 80), 7)])
def test_one_run_beside_others_at_work_is_not_all_that_is_known(
    seen: tuple[float, ...], counts: float, cache: Cache
) -> None:
    for seconds in seen:
        remember(cache, "demo.cut", seconds, Work(BILLION))
    assert expected(cache, "demo.cut", Work(BILLION)) == pytest.approx(counts)


@pytest.mark.usefixtures("drawn")
def test_a_gpu_has_no_line_and_notes_of_its_own(cache: Cache) -> None:
    assert noted_as("demo.cut", "cpu") == "demo.cut"
    elsewhere = noted_as("demo.cut", "cuda:1")
    assert expected(cache, elsewhere, Work(BILLION)) is None
    remember(cache, elsewhere, 3, Work(BILLION))
    assert expected(cache, elsewhere, Work(2 * BILLION)) == 6
    assert expected(cache, "demo.cut", Work(BILLION)) == LINE.at(Work(BILLION))


@pytest.mark.usefixtures("drawn")
def test_short_runs_say_nothing_of_a_machine(cache: Cache) -> None:
    remember(cache, "demo.tune", 9, Work(1))  # most of which are imports
    assert expected(cache, "demo.cut", Work(BILLION)) == LINE.at(Work(BILLION))


def test_a_note_that_cannot_be_written_stops_nothing(cache: Cache) -> None:
    (cache.root / "seconds").write_text("a file")
    remember(cache, "demo.cut", 9, Work(1))
    assert expected(cache, "demo.cut", Work(1)) is None


def test_the_last_runs_of_some_sizes_are_kept(cache: Cache) -> None:
    for size in range(1, 20):
        remember(cache, "demo.cut", size, Work(size))
    for seconds in (97, 98, 99):
        remember(cache, "demo.cut", seconds, Work(15))
    known = durations.runs(cache.root / "seconds" / "demo.cut")
    assert len(known) == durations.KEPT
    assert known[-2:] == (Run(98, Work(15)), Run(99, Work(15)))
    assert len({one.work for one in known}) == len(known) - 1


@pytest.mark.parametrize("note", ["not a number", "0.5", "{}", '{"seconds": 1, "work": 0}', "[1]", '[{"seconds": 0}]'])
def test_a_note_that_does_not_read_is_none(note: str, cache: Cache) -> None:
    (cache.root / "seconds").mkdir()
    (cache.root / "seconds" / "demo.cut").write_text(note)
    assert durations.runs(cache.root / "seconds" / "demo.cut") == ()


def test_a_note_of_before_is_one_run(cache: Cache) -> None:
    (cache.root / "seconds").mkdir()
    (cache.root / "seconds" / "demo.cut").write_text(json.dumps({"seconds": 2.5, "parameters": 7, "rounds": 3}))
    assert durations.runs(cache.root / "seconds" / "demo.cut") == (Run(2.5, Work(7, 3)),)


def test_what_learns_goes_over_all_that_its_updates_read(tmp_path: Path) -> None:
    """Of a student of few steps, `steps` are those of its denoising; and a denoiser goes over each place of its latents."""
    text, images = describe(language_model(tmp_path / "model")), describe(pipeline(tmp_path / "pipeline"))
    cases = (
        ("distill.steps", {"steps": 2, "updates": 300, "batch": 8, "substeps": 3}, 300 * 8 * 3),
        ("distill.logits", {"steps": 10, "batch": 4, "tokens": 64, "accumulate": 2}, 10 * 4 * 64 * 2),
        ("prune.depth", {"ratio": 0.5}, 1),
    )
    for name, params, rounds in cases:
        taught = find_stage(name)
        given = taught.params(**params)
        assert durations.work(text, ("model",), taught, given).rounds == rounds
        assert durations.work(images, ("unet",), taught, given).rounds == rounds * durations.latent_places(images)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    read = find_stage("distill.logits")
    given = read.params(steps=10, batch=4, tokens=64)
    assert durations.work(describe(tmp_path / "model"), ("model",), read, given).rounds == 10 * 4 * 48
    saved = find_stage("quantize.torchao")
    given = saved.params(mode="int8_weights")
    assert durations.work(images, ("unet",), saved, given).rounds == 1  # it never runs the model


def test_a_comparison_counts_what_is_scored_timed_and_started(tmp_path: Path) -> None:
    text, images = describe(language_model(tmp_path / "model")), describe(pipeline(tmp_path / "pipeline"))
    places = durations.latent_places(images)
    size = EvalSpec(metrics={"size": {}})
    assert evaluation_work(size, text)[1:] == (1, 0)
    costs = [EvalSpec(metrics={name: {}}) for name in ("throughput", "energy")]
    assert evaluation_work(costs[0], text) == evaluation_work(costs[1], text)
    spoken = EvalSpec(
        metrics={"perplexity": {}, "throughput": {}, "peak_memory": {}}, samples=50, new_tokens=16, starts=2
    )
    assert evaluation_work(spoken, text)[1:] == (2 * 50 + 3 * 20 * 16, 6)
    baseline = {"steps": 10}
    shown = EvalSpec.model_validate({"metrics": {"lpips": {}, "latency": {}}, "samples": 8, "baseline": baseline})
    assert evaluation_work(shown, images)[1:] == ((2 * 8 * 10 + 3 * 20 * 10) * places, 0)


@given(st.floats(0.1, 100), st.floats(0.01, 50), st.floats(0, 20))
def test_a_line_is_found_again_from_what_it_gave(fixed: float, each: float, start: float) -> None:
    line = Line(fixed, each, start)
    sizes = [Work(BILLION, rounds, starts) for rounds in (1, 10, 100) for starts in (0, 4)]
    found = fitted([Run(line.at(size), size) for size in sizes])
    for size in sizes:
        assert found.at(size) == pytest.approx(line.at(size), rel=0.02)


@given(st.lists(st.tuples(st.floats(0.1, 1000), st.integers(1, 10**12), st.integers(0, 9)), min_size=1, max_size=6))
def test_no_line_promises_less_than_nothing(seen: list[tuple[float, int, int]]) -> None:
    line = fitted([Run(seconds, Work(parameters, 1, starts)) for seconds, parameters, starts in seen])
    assert min(line.fixed, line.each, line.start) >= 0
    assert line.at(Work(1)) >= 0


def test_the_lines_are_of_stages_and_tasks_that_there_are() -> None:
    known = {name.partition(" ")[0] for name in durations.lines()}
    assert known <= {*stage_names(), "evaluate"}
    evaluated = {name.partition(" ")[2] for name in durations.lines() if name.startswith("evaluate ")}
    assert evaluated == set(task_names())
    assert all(line.at(Work(1)) > 0 for line in durations.lines().values())
