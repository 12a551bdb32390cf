"""What a report advises: the setting that decides an open gate, every speed that was measured, the stage that cost speed."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from compress.catalogue import find_metric
from compress.recipe.values import EvalSpec
from evaluation.comparison import Comparison, Row, Verdict
from evaluation.comparison.advice import advised
from evaluation.report import formatting, speed_summary
from evaluation.report.summary import questions
from evaluation.values import Estimate
from tests.unit.comparisons import image, latency, staged, text


def setting(metric: str, needed: int, *, n: int = 64, seen: int = 64, held: int = -1, recipe: str = "name: x") -> str:
    row = replace(
        image().rows[2], metric=metric, contrast=Estimate(0, -1, 1, n), verdict=Verdict("inconclusive", "", "", needed)
    )
    spec = EvalSpec(samples=64, timing_blocks=20, starts=3)
    request: Any = SimpleNamespace(spec=spec, recipe_text=recipe)
    return advised(row, find_metric(metric), request, seen, held).verdict.setting


@pytest.mark.parametrize(
    ("metric", "more", "message"),
    [
        ("kid", {}, "evaluate.samples: 517"),
        ("perplexity", {"n": 32}, "evaluate.samples: 1034"),  # half of the documents had a token to score
        ("kid", {"held": 517}, "evaluate.samples: 517"),
        ("kid", {"held": 300}, "the evaluation data hold 300, so give more, or all of them, evaluate.samples: 300"),
        ("kid", {"held": 64}, "the evaluation data hold 64, so give more"),
        ("kid", {"recipe": ""}, "--samples 517"),
        ("latency", {"n": 20}, "evaluate.timing_blocks: 517"),
        ("energy", {"n": 20, "recipe": ""}, "evaluate.timing_blocks: 517 in a recipe"),
        ("peak_memory", {"n": 3}, "evaluate.starts: 517"),
        ("token_agreement", {"n": 32}, "evaluate.continuations: 517, with evaluate.samples: 517"),
        ("token_agreement", {"n": 32, "seen": 600}, "evaluate.continuations: 517"),
        (
            "token_agreement",
            {"n": 32, "held": 64},
            "the evaluation data hold 64, so give more, and evaluate.continuations: 517",
        ),
        ("token_agreement", {"n": 64, "recipe": ""}, "--samples 517"),  # which are continued, all of them
        ("accuracy", {}, ""),
        ("size", {}, ""),
    ],
)
def test_the_setting_that_would_decide_is_named(metric: str, more: dict[str, Any], message: str) -> None:
    assert setting(metric, 517, **more) == message


def test_a_decided_gate_needs_no_setting() -> None:
    assert setting("kid", 0) == ""
    row = replace(text().rows[1], verdict=Verdict("inconclusive", "g", "why", 517, "evaluate.samples: 517"))
    assert formatting.reason(row) == "why; about 517 units would decide it: evaluate.samples: 517"


@pytest.mark.parametrize(
    ("holds", "recipe", "message"),
    [
        (0, "x", "about 1539 (evaluate.samples: 1539) an"),
        (1000, "x", "about 1539 (the evaluation data hold 1000) an"),
        (0, "", "about 1539 (--samples 1539) an"),
    ],
)
def test_trust_names_the_setting_as_far_as_the_data_go(holds: int, recipe: str, message: str) -> None:
    assert message in questions(replace(image(), holds=holds, recipe=recipe))[2][1]


def timed(title: str, value: float, unit: str = "ms") -> Row:
    return replace(
        latency(Estimate(value, value * 0.98, value * 1.02, 20)), metric=title.replace(" ", "_"), title=title, unit=unit
    )


def faster(*rows: Row, **more: Any) -> str:
    return speed_summary.answer(cast("Comparison", replace(image(), rows=rows, **more)))


def test_every_speed_is_spoken_of_also_one_that_fell() -> None:
    rows = (
        timed("latency", 3),
        timed("throughput", 2.9, "/s"),
        timed("time to first token", 0.53),
        timed("cold start", 1, "s"),
    )
    assert faster(*rows) == (
        "Yes: 3.000× faster [2.940, 3.060] in latency; also 2.900× faster [2.842, 2.958] in throughput; but 1.887× slower "
        "[1.850, 1.925] in time to first token; but 1.000× [0.980, 1.020] in cold start is no more than the noise."
    )
    assert faster(timed("latency", 0.5), timed("throughput", 2, "/s")).startswith("No: 2.000× slower")
    assert faster(timed("latency", 0.5), timed("throughput", 2, "/s")).endswith(
        "; but 2.000× faster [1.960, 2.040] in throughput."
    )


def test_times_that_prove_nothing_answer_nothing() -> None:
    found = image()
    rows = tuple(
        replace(row, noise=replace(row.noise, note="others were at work")) if row.noise else row for row in found.rows
    )
    assert any(row.noise for row in rows)
    said = speed_summary.answer(replace(found, rows=rows))
    assert said.startswith("Not settled: ")
    assert "; others were at work." in said
    assert speed_summary.answer(found).startswith("Yes: ")


def test_a_speed_without_a_number_leaves_the_answer_to_the_others() -> None:
    absent = replace(timed("latency", 1), contrast=Estimate(math.nan, math.nan, math.nan, 0))
    assert faster(absent) == "Not measured."
    assert faster(absent, timed("throughput", 2, "/s")) == "Yes: 2.000× faster [1.960, 2.040] in throughput."


def test_a_stage_that_cost_speed_is_named_with_the_run_without_it() -> None:
    assert speed_summary.slowed(staged()) == []
    steps = list(staged().steps)
    speed: Any = steps[2].speed
    slow = replace(speed, marginal=Estimate(0.8, 0.75, 0.85, 7))
    found = replace(staged(), steps=(*steps[:2], replace(steps[2], speed=slow), steps[3]))
    assert speed_summary.slowed(found) == [
        "The stage prune made it slower, 0.800× [0.750, 0.850] in latency: without it the run would be at about 5.38×, if the "
        "other stages gain as much"
    ]
    assert "The stage prune made it slower" in questions(found)[0][1]
    unsure = replace(speed, marginal=Estimate(0.98, 0.9, 1.1, 7))
    assert speed_summary.slowed(replace(found, steps=(*steps[:2], replace(steps[2], speed=unsure), steps[3]))) == []
