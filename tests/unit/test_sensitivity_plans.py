"""Measuring layers and sharing out a budget, as plans tell them: nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import compress
from compress.errors import RecipeError
from compress.planning.plan import Plan
from tests.tiny import tiny_llama

LOOK = {"analyze.sensitivity": {"group_size": 16}}
BUILD: dict[str, object] = {"build.openvino": {}}
AUTO = {"quantize.nncf": {"mode": "int4_weights", "group_size": 16, "bits": "auto", "budget": 0.2}}
TEACH = {"distill.logits": {"steps": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plans")
    tiny_llama(place / "model")
    for role in ("train", "calibration"):
        (place / f"{role}.txt").write_text("\n\n".join(f"{role} text number {i}" for i in range(20)))
    return place


def planned(folder: Path, *stages: dict[str, object], data: bool = True) -> Plan:
    body = {"schema": 1, "name": "plans", "model": "./model", "stages": list(stages)}
    body |= {"data": {"train": "./train.txt", "calibration": "./calibration.txt"}} if data else {}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    return compress.plan(folder / "recipe.yaml", cache=folder / "cache")


def refused(folder: Path, *stages: dict[str, object], data: bool = True) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        planned(folder, *stages, data=data)
    assert all("recipe.yaml:" in problem.place for problem in caught.value.problems)
    return [problem.message for problem in caught.value.problems]


def test_measuring_building_and_a_budget_plan_and_say_what_they_do(folder: Path) -> None:
    look, _, auto = planned(folder, LOOK, BUILD, AUTO).nodes
    assert look.reported.startswith("model: what each layer alone costs in 8, 4 bits")
    assert "within a budget of 0.2" in auto.reported
    assert look.stage.data(look.params) == ("calibration",)


def test_a_budget_without_measuring_is_refused(folder: Path) -> None:
    (message,) = refused(folder, BUILD, AUTO)
    assert "no analyze.sensitivity of `model` went before it" in message


def test_weights_that_changed_since_are_refused(folder: Path) -> None:
    (message,) = refused(folder, LOOK, TEACH, BUILD, AUTO)
    assert "distill.logits changed `model` after analyze.sensitivity had measured it" in message


def test_what_measures_needs_calibration_data_and_torch_weights(folder: Path) -> None:
    assert any("needs calibration data" in message for message in refused(folder, LOOK, data=False))
    assert any("takes torch, but `model` is openvino" in message for message in refused(folder, BUILD, LOOK))


def test_measuring_keeps_the_chain_after_it_planned_on_the_same_weights(folder: Path) -> None:
    with_, without = planned(folder, LOOK, TEACH).nodes[-1], planned(folder, TEACH).nodes[-1]
    assert with_.expected.components == without.expected.components
    assert with_.key != without.key
