"""Controls: which steps may be some, and how they are measured beside the candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.data.items import Data, Item
from compress.errors import RecipeError, UserError
from compress.events import Event, silent
from compress.model.describing import describe
from compress.planning.controls import held_to
from compress.planning.plan import Plan, make_plan
from compress.planning.show import plan_dict, plan_text
from compress.recipe.gates import Gate
from compress.recipe.reading import read_text
from compress.recipe.values import BaselineSpec, EvalSpec
from compress.store.cache import Cache
from evaluation.comparison import Side, controls
from evaluation.comparison import compare as comparing
from evaluation.comparison.control_rows import Beside, Control
from evaluation.evidence import Evidence, Timings
from evaluation.observe.collect import Viewpoint
from evaluation.observe.timing import Interleaved, time_pair
from evaluation.report import controls as reported
from tests.fakes import BUILD, CUT, STAGES, TUNE, knowing, language_model, pipeline, recipe, step
from tests.unit.comparisons import image

# ---------------------------------------------------------------- which steps may be some

BRANCHES = (
    step(TUNE, id="fewer"),
    step(BUILD, id="untrained", after="fewer"),
    step(CUT),
    step(BUILD, after="demo.cut"),
)
GATED: dict[str, Any] = {"gates": {"size": Gate(smaller=1)}}


def planned(tmp_path: Path, *named: str, steps: Any = BRANCHES, stages: Any = STAGES, **more: Any) -> Plan:
    model = tmp_path / "llama"
    spec = EvalSpec(metrics={"size": {}}, controls=named)
    with knowing(*stages):
        made = recipe(model if model.exists() else language_model(model), *steps, **{"evaluate": spec, **GATED, **more})
        return make_plan(made, Cache(tmp_path / "cache"))


def refused(tmp_path: Path, *named: str, **more: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, *named, **more)
    return [f"{p.message}: {p.fix}" for p in caught.value.problems]


def test_a_plan_names_its_controls_and_keys_do_not_know_of_them(tmp_path: Path) -> None:
    with_one, without = planned(tmp_path, "untrained"), planned(tmp_path)
    assert [node.key for node in with_one.nodes] == [node.key for node in without.nodes]
    assert plan_text(with_one).splitlines()[-1] == "  then measures size, beside the control untrained"
    assert plan_text(without).splitlines()[-1] == "  then measures size"
    assert plan_dict(with_one)["controls"] == ["untrained"]
    both = planned(tmp_path, "untrained", "demo.cut")  # a step of the chain may be one
    assert "beside the controls untrained, demo.cut" in plan_text(both)


def test_what_is_no_step_of_another_branch_is_no_control(tmp_path: Path) -> None:
    assert refused(tmp_path, "untraind") == ["controls: no step is called `untraind`: did you mean `untrained`?"]
    (itself,) = refused(tmp_path, "demo.build")
    assert itself.startswith("control `demo.build` is the candidate itself, for it is the last step")
    (source,) = refused(tmp_path, "source")
    assert source.startswith("control `source` is the baseline")
    assert len(refused(tmp_path, "untrained", "untrained", "nothing")) == 2
    for alone in ((), (step(CUT),)):
        (message,) = refused(tmp_path, "x", steps=alone)
        assert message.startswith(
            "controls: no step is called `x`: the last step is the candidate: put a step in front"
        )


def test_a_control_needs_something_to_be_held_to(tmp_path: Path) -> None:
    (nothing,) = refused(tmp_path, "untrained", gates={})
    assert "nothing to hold a control to" in nothing
    timed = EvalSpec(metrics={"size": {}, "latency": {}}, controls=("untrained",))
    assert held_to(timed, {}) == ("latency",)
    assert planned(tmp_path, evaluate=timed, gates={}).recipe.evaluate.controls == ("untrained",)


def test_a_control_that_cannot_run_here_is_reported_when_planning(tmp_path: Path) -> None:
    unavailable = replace(BUILD, name="demo.far", unavailable_here=lambda params: "this machine has no such chip")
    steps, stages = (step(unavailable, id="far"), step(BUILD)), (BUILD, unavailable)
    spec = EvalSpec(metrics={"size": {}, "latency": {}}, controls=("far",))
    (message,) = refused(tmp_path, steps=steps, stages=stages, evaluate=spec)
    assert message.startswith(
        "control `far`: latency needs the model to run, and this machine has no such chip: take it out"
    )
    assert planned(tmp_path, "far", steps=steps, stages=stages)  # its size can be reported of a model that lies there


def test_a_control_that_cannot_take_the_call_of_the_baseline_is_reported(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[tuple[str, ...]] = []

    def problems(recipe: Any, source: Any, nodes: Sequence[Any], who: str = "the candidate") -> Sequence[Any]:
        asked.append((who, *(node.id for node in nodes)))
        return ()

    monkeypatch.setattr("compress.planning.controls.candidate_problems", problems)
    planned(tmp_path, "untrained")
    assert asked == [("the control `untrained`", "fewer", "untrained")]


TEXT = """schema: 1
name: a
model: ./none
stages:
  - accelerate.steps: {steps: 6}
  - build.openvino: {id: untrained, from: accelerate.steps}
  - build.openvino: {from: source, precisoin: int8}
evaluate:
  metrics: [latency]
  controls: [untrained, accelerate.steps, untraind, build.openvino]
"""


def test_names_are_read_with_every_other_mistake_of_the_file() -> None:
    with pytest.raises(RecipeError) as caught:
        read_text(TEXT, "r.yaml")
    found = {p.place: p.message for p in caught.value.problems}
    assert found["r.yaml:10:43"] == "controls: no step is called `untraind`"
    assert found["r.yaml:10:53"].startswith("control `build.openvino` is the candidate itself")
    assert len(found) == 3
    good = TEXT.replace(", untraind, build.openvino", "").replace(", precisoin: int8", "")
    (read,) = read_text(good, "r.yaml")
    assert read.evaluate.controls == ("untrained", "accelerate.steps")


@pytest.mark.parametrize("controls", ["untrained", "[1]", "{a: b}"])
def test_controls_are_a_list_of_ids(controls: str) -> None:
    with pytest.raises(RecipeError, match="controls"):
        read_text(f"schema: 1\nname: a\nmodel: ./none\nevaluate: {{controls: {controls}}}\n", "r.yaml")


def test_two_models_without_a_recipe_have_no_controls(tmp_path: Path) -> None:
    model = str(language_model(tmp_path / "llama"))
    wanted = Wanted({"size": {}}, spec=EvalSpec(controls=("other",)))
    with pytest.raises(UserError, match="names steps of a recipe"):
        prepare(model, model, wanted, Cache(tmp_path / "cache"), tmp_path / "out")


# ---------------------------------------------------------------- how they are measured


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside others, which is none of what they are about."""
    monkeypatch.setattr("evaluation.observe.contention.share_of_others", lambda *readings: None)


def test_a_control_is_timed_in_the_blocks_of_both_sides_in_an_order_drawn_anew() -> None:
    log: list[str] = []

    def call(name: str, seconds: float, first: float) -> Any:
        return lambda: (log.append(name), (seconds, first))[1]

    runs = call("b", 0.4, 0.1), call("c", 0.1, 0.05), ("x", call("x", 0.2, 0.02), 6)
    found = time_pair(*runs[:2], (20, 2), 1, 20, 0, silent, beside=[runs[2]])
    (own,) = found.beside
    assert (own.seconds.tolist(), own.first.tolist(), own.work) == ([0.2] * 20, [0.02] * 20, 6)
    assert (found.baseline.work, found.candidate.work, found.again.work) == (20, 2, 20)
    assert (found.again.seconds == 0.4).all()
    blocks = [tuple(log[start : start + 4]) for start in range(len(log) - 80, len(log), 4)]
    assert all(sorted(block) == ["b", "b", "c", "x"] for block in blocks)
    assert len(set(blocks)) > 5


def test_a_busy_machine_is_reported_of_the_control_s_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.observe.contention.share_of_others", lambda *readings: 0.4)
    recorded: list[Event] = []

    def call() -> tuple[float, float]:
        return 0.1, 0.0

    found = time_pair(call, call, (1, 1), 1, 5, 0, recorded.append, beside=[("x", call, 1)])
    assert "other processes took 40%" in found.unsettled
    assert [e.what for e in recorded if e.kind == "warning"] == ["timing beside x"]


ITEMS = tuple(Item(f"d{i}", f"text {i}") for i in range(30))
GATES = {"perplexity": Gate(worse_by="5%"), "latency": Gate(faster=2)}


def reads(folder: Path, worse: float) -> Evidence:
    """A model that gives every token of thirty texts a probability, lower the worse it is."""
    draws = np.random.default_rng(0).normal(-2.0, 0.1, (30, 8)) - worse
    read = tuple(np.asarray(row) for row in draws)
    return Evidence(describe(folder), ITEMS, token_logprobs=read, bytes_read=(40,) * 30, protocol={"samples": 30})


def timings(milliseconds: float) -> Timings:
    seconds = np.random.default_rng(int(milliseconds)).normal(milliseconds, milliseconds / 100, 20) / 1000
    return Timings(seconds, np.zeros(0), 8, 1)


class Bench:
    """Baseline, candidate and control without a model in any of them: what `collect` and `time_views` would give is given."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.base, self.candidate = (reads(language_model(folder / name), 0.0) for name in ("one", "other"))
        self.candidate = replace(self.candidate, original=self.base)
        self.control = reads(folder / "other", 0.001)
        self.asked: list[tuple[int, dict[str, Any]]] = []
        self.timed = Interleaved(timings(100), timings(20), timings(101), "", 0.0, (timings(40),))
        self.view = Viewpoint(self.control.artifact, None, {}, ITEMS, "d", 0, 4, {"documents": ()})  # type: ignore[arg-type]
        patch.setattr(controls, "collect", self.collect)
        patch.setattr(controls, "time_views", lambda *args: self.timed)
        patch.setattr("compress.opening.open_task", lambda *args: None)

    def collect(self, view: Viewpoint, folders: Any, side: str, emit: Any) -> Evidence:
        self.asked.append((len(view.items), dict(view.evidence)))
        return self.control if view.items else replace(self.control, items=(), token_logprobs=())

    def rows(self, recorded: list[Event] | None = None, **more: Any) -> dict[str, Beside]:
        metrics: dict[str, Any] = {"perplexity": {}, "latency": {}, "size": {}, "kl": {}}
        spec = EvalSpec(metrics=metrics, stage_samples=4)
        request = SimpleNamespace(spec=spec, gates={**GATES, **more}, evidence_dirs=())
        emit = silent if recorded is None else recorded.append
        views, sides = (self.view,) * 3, (self.base, self.candidate)
        return {row.metric: row for row in controls.measure_control("x", views, sides, request, emit)}  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_control_is_held_to_every_gate_on_all_items_and_the_candidate_to_it(bench: Bench) -> None:
    found = bench.rows()
    assert list(found) == ["perplexity", "latency"]  # what is neither gated nor a speed is left out
    assert (0, {"documents": ()}) in bench.asked
    assert (30, {"documents": ()}) in bench.asked  # and not `stage_samples`
    text, time = found["perplexity"], found["latency"]
    assert (text.verdict.status, text.contrast.n) == ("pass", 30)
    assert text.contrast.value == pytest.approx(-text.over.value)  # the candidate is as the baseline here
    assert time.contrast.value == pytest.approx(2.5, rel=0.05)
    assert time.over.value == pytest.approx(2.0, rel=0.05)
    assert time.over.low < time.over.value < time.over.high
    assert time.noise is not None
    assert time.verdict.status == "pass"
    assert bench.rows(latency=Gate(faster=3))["latency"].verdict.status == "fail"
    assert bench.rows(latency=Gate(faster=2.5))["latency"].verdict.status == "inconclusive"
    assert bench.rows(size=Gate(smaller=1))["size"].over.value == 1.0


def test_a_speed_that_a_busy_machine_gave_decides_nothing(bench: Bench) -> None:
    bench.timed = replace(bench.timed, unsettled="other processes took 40%")
    time = bench.rows()["latency"]
    assert (time.verdict.status, time.verdict.why) == ("inconclusive", "other processes took 40%")
    row = image().rows[0]
    comparison = replace(image(), rows=(row,), controls=(Control("x", Side("control", "", ""), (time,)),))
    assert "in latency, which proves nothing (other processes took 40%)." in reported.lines(comparison)[0]


def test_a_control_that_fails_ends_no_run_and_passes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(controls, "time_views", broken)
    recorded: list[Event] = []
    found = bench.rows(recorded)
    assert found["perplexity"].verdict.status == "pass"
    assert (found["latency"].verdict.status, math.isnan(found["latency"].over.value)) == ("inconclusive", True)
    assert found["latency"].verdict.why == "speed not measured: RuntimeError: out of luck"
    assert [f"{e.what}: {e.message}" for e in recorded] == ["control x: speed not measured: RuntimeError: out of luck"]
    monkeypatch.setattr(controls, "measured", broken)
    assert bench.rows()["perplexity"].verdict.why == "perplexity not measured: RuntimeError: out of luck"


def test_a_control_is_called_as_it_is_meant_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Viewpoint] = []

    def measure(name: str, views: Sequence[Viewpoint], *more: Any) -> tuple[Beside, ...]:
        seen.extend(views)
        return ()

    monkeypatch.setattr(comparing, "measure_control", measure)
    model = replace(describe(pipeline(tmp_path / "generator")), digest="one")
    request = comparing.Request(
        "x", model.calling(num_inference_steps=2, guidance_scale=1.0), model, items(), spec(), {}, "", (), tmp_path, (),
        left={"fewer": model.calling(num_inference_steps=6)},
    )  # fmt: skip
    views = comparing.viewpoints(request)
    (found,) = comparing._controls(views, (), request, silent)  # type: ignore[arg-type]
    assert (found.stage, found.side.name) == ("fewer", "fewer")
    assert dict(found.side.call) == {"num_inference_steps": 6, "guidance_scale": 3.0}
    assert dict(seen[1].call) == {"num_inference_steps": 2, "guidance_scale": 1.0}
    alone = replace(request, candidate=request.left["fewer"])  # its evidence is what a run of its own would find
    assert seen[2].key("images") == comparing.viewpoints(alone)[1].key("images")


def items() -> Data:
    return Data("texts", "captions", "digest", 5, lambda index: Item(f"u{index}", "a red one"))


def spec() -> EvalSpec:
    return EvalSpec(samples=4, controls=("fewer",), baseline=BaselineSpec(steps=20, guidance=3.0))
