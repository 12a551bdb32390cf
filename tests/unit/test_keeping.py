"""`keep: if_faster`: what is refused, what is timed, what is decided, and that what was given is passed on untouched where it is not kept."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import compress
from compress.catalogue import Forecast, Stage
from compress.errors import RecipeError
from compress.events import Event, silent
from compress.execution import keep
from compress.execution.execute import Done, execute, node_refs, run_node
from compress.execution.keep import Decision, decided
from compress.model.describing import describe
from compress.planning.engine_checks import _sizes
from compress.planning.keep_decision import decisions, dropped
from compress.planning.plan import Plan, make_plan
from compress.planning.show import plan_dict, plan_text
from compress.recipe.reading import read_text
from compress.recipe.schema import recipe_schema
from compress.recipe.values import EvalSpec, Recipe, StepSpec
from compress.store.cache import Cache
from evaluation.evidence import Timings
from evaluation.observe.timing import Interleaved
from evaluation.report import markdown, terminal
from tests.fakes import BUILD, CUT, TUNE, knowing, language_model, recipe, step
from tests.unit.comparisons import image
from tests.unit.test_execute import Trusting, add_one, copying, rewriting

WORKING = replace(CUT, run=rewriting(add_one))
TUNING = replace(TUNE, run=copying)
RATIOS = st.floats(0.2, 5)


def timings(seconds: Any) -> Timings:
    return Timings(np.asarray(seconds, dtype=np.float64), np.empty(0), 1, 1)


def times(faster: float, scatter: float = 0.01, seed: int = 0, scale: float = 1.0, unsettled: str = "") -> Interleaved:
    """Times of 20 blocks, the second side so many times as fast."""
    one, other, again = scale * np.random.default_rng(seed).normal(1, scatter, (3, 20)).clip(0.5)
    return Interleaved(timings(one), timings(other / faster), timings(again), unsettled)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.prepare()
    return store


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Trusting:
    checker = Trusting()
    monkeypatch.setattr("compress.execution.execute.lent_checker", lambda: contextlib.nullcontext(checker))
    return checker


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """Says what timing shows, one answer after the other, the last for good; gives the pairs that were timed."""

    def answering(*answers: Interleaved) -> list[tuple[str, str]]:
        asked: list[tuple[str, str]] = []

        def answer(before: Any, after: Any, plan: Any, emit: Any) -> Interleaved:
            asked.append((before.digest, after.digest))
            return answers[min(len(asked), len(answers)) - 1]

        monkeypatch.setattr(keep, "_timed", answer)
        return asked

    return answering


def if_faster(stage: Stage, **more: Any) -> StepSpec:
    return replace(step(stage, **more), if_faster=True)


def planned(cache: Cache, model: Path, *pairs: tuple[Stage, StepSpec], **more: Any) -> Plan:
    with knowing(*(stage for stage, _ in pairs)):
        return make_plan(recipe(model, *(spec for _, spec in pairs), **more), cache)


def run(cache: Cache, model: Path, *pairs: tuple[Stage, StepSpec], emit: Any = silent) -> tuple[Done, ...]:
    with knowing(*(stage for stage, _ in pairs)):
        return execute(planned(cache, model, *pairs), cache, emit)


# What times decide


@given(RATIOS, st.integers(0, 99), st.floats(0.001, 1000))
def test_what_is_kept_lies_wholly_above_the_noise_and_the_clock_has_no_say(
    faster: float, seed: int, scale: float
) -> None:
    found, slower_clock = (decided(times(faster, seed=seed, scale=s)) for s in (1, scale))
    assert found.floor >= 1
    assert found.kept == (found.low > found.floor) == slower_clock.kept
    assert found.kept == (faster > 1.03) or 0.97 < faster < 1.06
    assert found.why.startswith("kept: " if found.kept else "not kept: ")


def test_a_gain_within_the_noise_counts_as_none_and_is_message() -> None:
    found = decided(times(1.02, scatter=0.05))
    assert not found.kept
    assert f"which is not above the noise of {found.floor:.3f}×" in found.why
    slower = decided(times(0.78))
    assert "noise" not in slower.why
    assert slower.why.startswith("not kept: 0.77")
    assert decided(times(1.5)).why.startswith("kept: 1.")


@pytest.mark.parametrize(
    ("unsettled", "tries", "warned"), [(["busy", ""], 2, False), (["busy"], 2, True), ([""], 1, False)]
)
def test_a_busy_machine_is_asked_again_and_then_reported_of(
    unsettled: list[str], tries: int, warned: bool, cache: Cache, llama: Path, trusting: Trusting, timed: Any
) -> None:
    asked = timed(*(times(1.5, unsettled=why) for why in unsettled))
    (done,) = run(cache, llama, (WORKING, if_faster(WORKING)))
    assert len(asked) == tries
    message = "decided while the machine was not at rest: busy; this decision stands until another evaluate.timing_blocks asks anew"
    assert done.facts.get("warnings", []) == [message] * warned


def test_a_measurement_that_is_made_again_warns_of_nothing_by_itself(
    llama: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision tells what was wrong with the times that it rests on."""

    def time_views(*given: Any) -> Interleaved:
        given[-1](Event("progress", "timing, interleaved"))
        given[-1](Event("warning", "timing", "busy"))
        return times(1.5, unsettled="busy")

    monkeypatch.setattr("evaluation.observe.timing.time_views", time_views)
    monkeypatch.setattr("compress.opening.open_task", lambda artifact, opening: artifact)
    model, recorded = replace(describe(llama), digest="a"), list[Event]()
    plan = planned(cache, llama, (CUT, step(CUT)))
    found = keep.decide(model, model, plan, cache.scratch("key"), recorded.append)
    assert (found.unsettled, [event.kind for event in recorded]) == ("busy", ["progress"] * keep.TRIES)


# What a plan says


def test_a_stage_keeps_its_key_and_the_decision_has_one_of_its_own(
    cache: Cache, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = planned(cache, llama, (CUT, step(CUT))).nodes
    (node,) = planned(cache, llama, (CUT, if_faster(CUT))).nodes
    assert (plain.made, node.made) == ("", plain.key)

    def key(**settings: Any) -> str:
        return planned(cache, llama, (CUT, if_faster(CUT)), evaluate=EvalSpec(**settings)).nodes[0].key

    differing = [
        key(),
        key(timing_batch=2),
        key(timing_blocks=30),
        key(new_tokens=9),
        key(baseline={"dtype": "float16"}),
    ]
    assert node.key == differing[0] == key(samples=9, stage_samples=3, batch=5)
    assert len({plain.key, *differing}) == 6
    monkeypatch.setattr("compress.planning.keep_decision.machine_fact", lambda kind: "another machine")
    assert key() not in differing
    assert planned(cache, llama, (CUT, if_faster(CUT))).nodes[0].made == plain.key


def test_a_plan_says_that_it_is_open_and_then_how_it_fell(
    cache: Cache, llama: Path, trusting: Trusting, timed: Any
) -> None:
    timed(times(0.78))
    plan = planned(cache, llama, (WORKING, if_faster(WORKING)))
    assert "kept only if it is faster here" in plan_text(plan)
    assert plan_dict(plan)["nodes"][0]["keep"] == "if_faster"
    run(cache, llama, (WORKING, if_faster(WORKING)))
    assert "not kept: 0.77" in plan_text(planned(cache, llama, (WORKING, if_faster(WORKING))))
    assert "keep" not in plan_dict(planned(cache, llama, (WORKING, step(WORKING))))["nodes"][0]


def refused(cache: Cache, model: Path, *pairs: tuple[Stage, StepSpec], place: Mapping[str, str] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(cache, model, *pairs, place=place or {})
    return "\n".join(f"{p.place} {p.message}: {p.fix}" for p in caught.value.problems)


def test_a_stage_that_changes_formats_is_refused_at_the_key(cache: Cache, llama: Path) -> None:
    message = refused(cache, llama, (BUILD, if_faster(BUILD)), place={"stages.0.keep": "r.yaml:9:11"})
    assert message.startswith(
        "r.yaml:9:11 demo.build makes another format of `model`, and keep: if_faster is for stages that keep"
    )
    assert "remove `keep`" in message


def test_what_cannot_run_here_cannot_be_timed_here(cache: Cache, llama: Path) -> None:
    away = replace(BUILD, unavailable_here=lambda params: "there is no such GPU here")
    tune = replace(TUNE, formats={})
    pairs = ((away, step(away)), (tune, if_faster(tune, after="demo.build")))
    message = refused(cache, llama, *pairs)
    assert "keep: if_faster has to run what demo.tune leaves, and there is no such GPU here" in message
    assert planned(cache, llama, pairs[0], (tune, step(tune, after="demo.build"))).nodes[1].made == ""


def halving(name: str, **more: Any) -> Stage:
    """A stage that halves the layers in a config, and refuses an odd number."""

    def refuse(artifact: Any, params: Any) -> str:
        return "the layers are odd" if artifact.config("model")["num_hidden_layers"] % 2 else ""

    def forecast(artifact: Any, params: Any) -> Forecast:
        config = dict(artifact.config("model"))
        return Forecast({"model": {**config, "num_hidden_layers": config["num_hidden_layers"] // 2}}, reported="halved")

    def work(artifact: Any, params: Any, context: Any) -> None:
        rewriting(add_one)(artifact, params, context)
        config = json.loads((artifact.path / "config.json").read_text())
        (context.out / "config.json").unlink()
        (context.out / "config.json").write_text(
            json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] // 2})
        )

    return replace(CUT, name=name, refuse=refuse, forecast=forecast, run=work, **more)


def layered(folder: Path, layers: int) -> Path:
    model = language_model(folder)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    return model


def test_a_later_step_must_work_on_either_outcome(cache: Cache, tmp_path: Path) -> None:
    first, second = halving("demo.half"), halving("demo.again")

    def third(artifact: Any, params: Any) -> str:
        return "eight layers are too many" if artifact.config("model")["num_hidden_layers"] == 8 else ""

    picky = replace(TUNE, refuse=third)
    kept, later = if_faster(first), step(picky, after="demo.half")
    model = layered(tmp_path / "eight", 8)
    message = refused(cache, model, (first, kept), (picky, later))
    assert "eight layers are too many, where a step before it is not kept" in message
    assert not planned(cache, model, (first, step(first)), (picky, later)).nodes[1].undecided
    nodes = planned(cache, model, (first, kept), (second, step(second, after="demo.half"))).nodes
    assert [node.undecided for node in nodes] == [False, True]


def test_the_calls_that_decide_are_held_against_the_model_too(cache: Cache, llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    short = {**config, "model_type": "gpt2", "n_positions": 100}
    (llama / "config.json").write_text(json.dumps(short))
    spec = EvalSpec(metrics={}, prompt_tokens=90, new_tokens=20)
    assert planned(cache, llama, (CUT, step(CUT)), evaluate=spec)
    with pytest.raises(RecipeError, match="prompt_tokens and new_tokens are 110 together"):
        planned(cache, llama, (CUT, if_faster(CUT)), evaluate=spec)
    sizes = _sizes(EvalSpec(timing_batch=3), describe(llama), decided=True)
    assert (sizes["timing_batch"].count, "timing_batch" in _sizes(spec, describe(llama))) == (3, False)


def naming(name: str) -> Stage:
    """A stage that writes its name into the config."""

    def forecast(artifact: Any, params: Any) -> Forecast:
        return Forecast({"model": {**artifact.config("model"), name: 1}})

    return replace(CUT, name=name, forecast=forecast)


@pytest.mark.parametrize(("count", "many"), [(5, False), (6, True), (40, True)])
def test_so_many_open_steps_are_refused_before_they_are_all_planned(
    count: int, many: bool, cache: Cache, llama: Path
) -> None:
    names = [f"demo.name{n}" for n in range(count)]
    stages = [naming(name) for name in names]
    pairs = [(one, if_faster(one, after=before)) for one, before in zip(stages, ["source", *names], strict=False)]
    if many:
        assert "makes more than 32 models" in refused(cache, llama, *pairs)
    else:
        assert len(planned(cache, llama, *pairs).nodes) == count


# What runs


@pytest.mark.parametrize("faster", [1.5, 0.78, 1.0])
def test_what_stays_is_the_stages_work_or_what_it_was_given_to_the_byte(
    faster: float, cache: Cache, llama: Path, trusting: Trusting, timed: Any
) -> None:
    asked = timed(times(faster))
    alone = run(
        Cache(cache.root.parent / "other"), llama, (TUNING, step(TUNING)), (WORKING, step(WORKING, after="demo.tune"))
    )
    recorded: list[Event] = []
    pairs = ((TUNING, step(TUNING)), (WORKING, if_faster(WORKING, after="demo.tune")))
    given, done = run(cache, llama, *pairs, emit=recorded.append)
    kept = faster > 1.1
    assert asked == [(given.artifact.digest, alone[1].artifact.digest)]
    assert done.artifact.digest == (alone[1] if kept else given).artifact.digest
    assert [p.stage for p in done.artifact.lineage] == ["demo.tune", *["demo.cut"] * kept]
    assert done.facts["kept"] == kept
    assert [e.kind for e in recorded if e.what == "demo.cut" and e.kind in ("started", "finished")] == [
        "started",
        "finished",
    ]
    assert any(e.message == done.facts["decision"] for e in recorded)
    again = run(cache, llama, *pairs)[1]
    assert (again.cached, again.facts, len(asked)) == (True, done.facts, 1)
    plain = run(cache, llama, pairs[0], (WORKING, step(WORKING, after="demo.tune")))[
        1
    ]  # the trial is a result of its own
    assert (plain.cached, plain.artifact.digest) == (True, alone[1].artifact.digest)


def test_a_source_that_is_passed_on_is_copied_and_stays_whole(
    cache: Cache, llama: Path, trusting: Trusting, timed: Any
) -> None:
    timed(times(0.5))
    before = {file.name: file.stat().st_ino for file in llama.iterdir()}
    (done,) = run(cache, llama, (WORKING, if_faster(WORKING)))
    assert {file.name: file.stat().st_ino for file in llama.iterdir()} == before
    assert (done.artifact.path / "config.json").stat().st_ino not in before.values()
    assert (done.artifact.path / "config.json").read_bytes() == (llama / "config.json").read_bytes()
    assert done.artifact.lineage == ()


def test_what_a_stage_says_of_work_that_did_not_stay_is_not_reported(
    cache: Cache, llama: Path, trusting: Trusting, timed: Any
) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        rewriting(add_one)(artifact, params, context)
        context.note("narrower", widths=3)
        context.emit(Event("warning", context.node, "it grew"))

    noting = replace(CUT, run=work)
    for faster, reported in ((0.5, False), (2.0, True)):
        timed(times(faster))
        recorded: list[Event] = []
        store = Cache(cache.root.parent / str(faster))
        (done,) = run(store, llama, (noting, if_faster(noting)), emit=recorded.append)
        assert ("widths" in done.facts, done.facts.get("warnings", [])) == (reported, ["it grew"] * reported)
        assert sum(event.message == "it grew" for event in recorded) == reported
        (again,) = run(store, llama, (noting, if_faster(noting)))
        assert again.facts == done.facts


def test_a_run_that_is_cut_off_goes_on_from_its_decision(
    cache: Cache, llama: Path, trusting: Trusting, timed: Any
) -> None:
    works: list[int] = []

    def work(artifact: Any, params: Any, context: Any) -> None:
        works.append(1)
        rewriting(add_one)(artifact, params, context)

    stage = replace(CUT, run=work)
    asked = timed(times(1.5))
    for cut_off_in, timings_made in (("write_whole", 1), ("pass_on", 2)):  # of the first, the timing was lost
        with mock.patch.object(keep, cut_off_in, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            run(cache, llama, (stage, if_faster(stage)))
        assert (len(works), len(asked)) == (1, timings_made)  # the work is an entry
    (done,) = run(cache, llama, (stage, if_faster(stage)))
    assert (len(works), len(asked), done.facts["kept"]) == (1, 2, True)
    assert not list((cache.root / "scratch").iterdir())


def test_a_step_behind_one_that_was_not_kept_is_held_to_what_it_was_given(
    cache: Cache, tmp_path: Path, trusting: Trusting, timed: Any
) -> None:
    model = layered(tmp_path / "eight", 8)
    first, second = halving("demo.half"), halving("demo.again")
    pairs = ((first, if_faster(first)), (second, step(second, after="demo.half")))
    for faster, layers in ((2.0, 2), (0.5, 4)):
        timed(times(faster))
        done = run(Cache(tmp_path / str(faster)), model, *pairs)
        assert done[1].artifact.config("model")["num_hidden_layers"] == layers


RECIPE = """schema: 1
name: r
model: ./llama
stages:
  - demo.tune
  - demo.cut: {{ratio: 0.3{inside}}}{beside}
"""


def text(inside: str = "", beside: str = "") -> str:
    return RECIPE.format(inside=f", keep: {inside}" if inside else "", beside=f"\n    keep: {beside}" if beside else "")


def read(written: str, *overrides: str, folder: Path = Path()) -> Recipe:
    with knowing(CUT, TUNE):
        return read_text(written, str(folder / "r.yaml"), overrides)[0]


def test_a_step_runs_by_its_reference_in_any_process(cache: Cache, llama: Path, trusting: Trusting, timed: Any) -> None:
    timed(times(0.5))
    with knowing(WORKING, TUNING):
        (found,) = read_text(text(beside="if_faster"), str(llama.parent / "r.yaml"))
        plan = make_plan(found, cache)
        there = [run_node(ref, cache, silent) for ref in node_refs(plan)]
        here = execute(plan, Cache(llama.parent / "here"), silent)
    assert [done.key for done in there] == [done.key for done in here]
    assert [done.artifact.digest for done in there] == [done.artifact.digest for done in here]
    assert there[1].facts == here[1].facts


def test_one_stage_alone_is_decided_about_too(cache: Cache, llama: Path, trusting: Trusting, timed: Any) -> None:
    for faster, lineage in ((0.5, 0), (2.0, 1)):
        timed(times(faster))
        with knowing(WORKING):
            found = compress.apply("demo.cut", llama, {"keep": "if_faster"}, cache=cache.root.parent / str(faster))
        assert len(found.lineage) == lineage


# What a recipe says


def test_it_stands_beside_the_name_or_among_the_parameters() -> None:
    for written in (text(inside="if_faster"), text(beside="if_faster")):
        found = read(written)
        assert [one.if_faster for one in found.stages] == [False, True]
        assert found.stages[1].params == read(text()).stages[1].params
        assert found.place["stages.1.keep"].startswith("r.yaml:")
        assert not read(written, "stages.1.keep=always").stages[1].if_faster
        assert read(written, "stages.1.ratio=0.2").stages[1].if_faster
        with knowing(CUT, TUNE):
            assert not found.with_({"stages.1.keep": "always"}).stages[1].if_faster
    assert read(text(), "stages.1.keep=if_faster").stages[1].if_faster
    assert read(text(), "stages.0={demo.tune: null, keep: if_faster}").stages[0].if_faster


@pytest.mark.parametrize(
    ("inside", "beside", "message"),
    [
        ("sometimes", "", 'keep must be always or if_faster, not "sometimes"'),
        ("", "true", "keep must be always or if_faster, not true"),
        ("always", "if_faster", "keep is given twice, beside demo.cut and among its parameters"),
    ],
)
def test_what_it_cannot_say_is_one_located_mistake(inside: str, beside: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(text(inside, beside))
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.place.startswith("r.yaml:6:" if not beside or inside else "r.yaml:7:")


@pytest.mark.parametrize(
    ("entry", "valid"),
    [
        ({"quantize.nncf": {"mode": "int8"}, "keep": "if_faster"}, True),
        ({"quantize.nncf": {"mode": "int8", "keep": "if_faster"}}, True),
        ({"quantize.nncf": None, "keep": "${how}"}, True),
        ({"quantize.nncf": {}, "keep": "sometimes"}, False),
        ({"quantize.nncf": {}, "build.openvino": {}, "keep": "always"}, False),
        ({"keep": "always"}, False),
    ],
)
def test_the_schema_says_the_same(entry: dict[str, Any], valid: bool) -> None:
    whole = {"schema": 1, "name": "r", "model": "zoo://digits-diffusion", "stages": [entry]}
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(whole) == valid


# What a report says


def test_summary_and_reports_say_what_was_decided() -> None:
    facts = Decision(0.78, 0.74, 0.95, 1.02, 20).facts
    comparison = image()
    stages = (comparison.stages[0], {**comparison.stages[1], "facts": facts})
    found = replace(comparison, stages=stages)
    assert dropped(stages) == {"int8": facts["decision"]}
    line = "int8: not kept: 0.78× as fast [0.74, 0.95] with it as without, timed here"
    assert decisions(stages) == (line,)
    assert "not kept: 0.78× as fast" in markdown.render(found)
    assert "not kept" not in markdown.render(comparison)
    shown = io.StringIO()
    terminal.show(found, Console(width=200, file=shown))
    assert line in shown.getvalue()
