"""How many steps a strength leaves of those that are asked for, as a plan tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compress.catalogue import find_stage
from compress.planning.plan import Plan, make_plan
from compress.planning.show import plan_dict, plan_text
from compress.recipe.values import BaselineSpec, EvalSpec
from compress.store.cache import Cache
from tests.fakes import pipeline, recipe, step

WHOLE, REST = "StableDiffusionImg2ImgPipeline", "StableDiffusion3Img2ImgPipeline"  # as their sources count


def planned(folder: Path, kind: str, baseline: Mapping[str, Any], *steps: int) -> Plan:
    made = pipeline(folder / "model")
    index = json.loads((made / "model_index.json").read_text())
    (made / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    asked = [step(find_stage("accelerate.steps"), steps=number) for number in steps]
    spec = EvalSpec(baseline=BaselineSpec(**baseline))
    return make_plan(recipe(made, *asked, evaluate=spec), Cache(folder / "cache"))


@pytest.mark.parametrize(
    ("kind", "baseline", "steps", "shown"),
    [
        (WHOLE, {"steps": 20, "strength": 0.5}, (), "strength 0.5 leaves 10 of the baseline's 20 steps to run"),
        (WHOLE, {}, (), "strength 0.8 leaves 40 of the baseline's 50 steps to run"),
        (
            WHOLE,
            {"steps": 20, "strength": 0.5},
            (5,),
            "strength 0.5 leaves 10 of the baseline's 20 steps to run, and 2 of the candidate's 5",
        ),
        (REST, {"steps": 20, "strength": 0.33}, (), "strength 0.33 leaves 7 of the baseline's 20 steps to run"),
        (WHOLE, {"steps": 20, "strength": 1.0}, (), ""),
        ("StableDiffusionPipeline", {"steps": 20}, (5,), ""),
    ],
)
def test_a_plan_tells_what_a_strength_leaves(
    kind: str, baseline: dict[str, Any], steps: tuple[int, ...], shown: str, tmp_path: Path
) -> None:
    lines = plan_text(planned(tmp_path, kind, baseline, *steps)).splitlines()
    assert [line.strip() for line in lines if "steps to run" in line] == [shown] * bool(shown)


def test_a_plan_as_json_counts_them_on_both_sides(tmp_path: Path) -> None:
    found = plan_dict(planned(tmp_path, WHOLE, {"steps": 20, "strength": 0.5}, 5))["steps"]
    assert found == {
        "baseline": {"strength": 0.5, "asked": 20, "run": 10},
        "candidate": {"strength": 0.5, "asked": 5, "run": 2},
    }
    other = planned(tmp_path, "StableDiffusionPipeline", {"steps": 20}, 5)
    assert plan_dict(other)["steps"] == {}
