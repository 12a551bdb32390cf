"""What stages were given, as reports show it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compress.recipe.reading import read_text
from evaluation.report import html, markdown, result
from evaluation.report.stage_settings import LONGEST, as_given
from tests.unit.comparisons import image

TEXT = """schema: 1
name: demo
model: zoo://digits-diffusion
data: {train: zoo://digits/train}
vars: {steps: 8}
stages:
- accelerate.steps: {steps: "${steps}", id: fewer, scheduler: null}
- distill.steps: {steps: 4, guidance: 3.0, from: source}
- distill.steps: {steps: 2, id: two, teacher: distill.steps}
- build.openvino
"""


def given(*overrides: str, **changed: Any) -> list[dict[str, Any]]:
    (found,) = read_text(TEXT, "r.yaml", overrides)
    found = found.with_(changed) if changed else found
    return [found.given(step.id) for step in found.stages]


def test_a_step_tells_what_it_was_given_and_no_defaults() -> None:
    assert given() == [
        {"steps": 8},
        {"steps": 4, "guidance": 3.0},
        {"steps": 2, "teacher": "distill.steps"},
        {},
    ]


def test_overrides_are_applied() -> None:
    changed = given("vars.steps=6", "stages.1.guidance=null", "stages.1.updates=10", "stages.3.precision=int8")
    assert changed[0] == {"steps": 6}
    assert changed[1] == {"steps": 4, "updates": 10}
    assert changed[3] == {"precision": "int8"}
    assert given(**{"stages.3.precision": "int8"})[3] == {"precision": "int8"}


def test_what_a_stage_fills_in_by_itself_is_not_given_and_the_order_is_the_recipes() -> None:
    found = given("stages.1.method=consistency")[1]
    assert list(found.items()) == [("steps", 4), ("guidance", 3.0), ("method", "consistency")]


def test_a_teacher_of_its_own_is_told_with_the_stages_facts() -> None:
    assert given("stages.2.teacher=zoo://digits-diffusion")[2] == {"steps": 2}


@pytest.mark.parametrize(
    ("stage", "shown"),
    [
        ({"id": "eight", "stage": "distill.steps", "params": {"steps": 8, "guidance": 3.0}},
         "distill.steps: {steps: 8, guidance: 3.0}"),
        ({"id": "build.openvino", "stage": "build.openvino", "params": {}}, ""),
        ({"id": "engine", "stage": "build.openvino", "params": {}}, "build.openvino"),
        ({"id": "eight", "stage": "distill.steps"}, "distill.steps"),  # of a result of before
        ({"id": "x"}, ""),
    ],
)  # fmt: skip
def test_it_is_shown_as_a_recipe_writes_it(stage: dict[str, Any], shown: str) -> None:
    assert as_given(stage) == shown


def test_long_lists_are_cut() -> None:
    shown = as_given({"id": "x", "stage": "quantize.gptq", "params": {"ignore": [f"layer.{n}" for n in range(99)]}})
    assert shown.startswith("quantize.gptq: {ignore: [layer.0, layer.1,")
    assert (len(shown), shown[-1]) == (LONGEST, "…")


def test_reports_show_it_in_their_table_of_stages() -> None:
    params = {"bits": 8, "ignore": ["<b>"]}
    found = replace(image(), stages=({**image().stages[1], "params": params},))
    assert "<small><code>quantize: {bits: 8, ignore: [&lt;b&gt;]}</code></small>" in html.render(found)
    assert "| int8 | quantize: {bits: 8, ignore: \\[&lt;b&gt;\\]} | ran |" in markdown.render(found)
    assert result.from_dict(result.to_dict(found)).stages == found.stages
