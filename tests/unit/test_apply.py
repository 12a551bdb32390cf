"""`compress.apply`: a recipe of one stage, with the keys and the errors of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

import compress
from compress.errors import RecipeError, UserError
from compress.planning.plan import Plan, make_plan
from compress.recipe.values import StepSpec
from compress.store.cache import Cache
from tests.fakes import CUT, STAGES, Cut, knowing, language_model, recipe, step


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


@pytest.fixture
def planned(tmp_path: Path) -> Iterator[list[Plan]]:
    """The plans that `apply` would have executed; nothing runs."""
    plans: list[Plan] = []

    def execute(plan: Plan, *rest: object) -> list[Any]:
        plans.append(plan)
        return [SimpleNamespace(artifact=plan.nodes[-1].expected)]

    with knowing(*STAGES), mock.patch("compress.execution.execute.execute", execute):
        yield plans


def test_its_keys_are_those_of_a_step_made_by_hand(llama: Path, planned: list[Plan], tmp_path: Path) -> None:
    compress.apply("demo.cut", llama, cache=tmp_path / "cache", seed=3, ratio=0.25, layers=(1, 2))
    hand: StepSpec = step(CUT, ratio=0.25, layers=(1, 2))
    (node,) = make_plan(recipe(llama, hand, seed=3), Cache(tmp_path / "cache")).nodes
    assert [(n.id, n.key, n.components, n.params) for n in planned[0].nodes] == [
        ("demo.cut", node.key, ("model",), Cut(ratio=0.25, layers=(1, 2)))
    ]


def test_parameters_come_by_name_or_in_a_mapping(llama: Path, planned: list[Plan], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    compress.apply("demo.cut", llama, {"ratio": 0.25}, cache=cache)
    compress.apply("demo.cut", llama, ratio=0.25, cache=cache)
    compress.apply("demo.cut", llama, {"ratio": 0.25}, layers=(), cache=cache)
    assert len({plan.nodes[0].key for plan in planned}) == 1


def test_a_folder_may_be_given_in_any_way(
    llama: Path, planned: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model in (llama, str(llama), Path("llama"), "llama", "./llama"):
        compress.apply("demo.cut", model, cache=tmp_path / "cache")
    assert len({plan.nodes[0].key for plan in planned}) == 1


def test_every_mistake_is_reported_at_once_in_a_recipe_s_words(llama: Path, planned: list[Plan]) -> None:
    with pytest.raises(RecipeError) as caught:
        compress.apply("demo.cut", llama, {"ratio": "half"}, layer=[1], seed=-1)
    reported = sorted(f"{p.place}: {p.message}" for p in caught.value.problems)
    assert reported == [
        'compress.apply("demo.cut"): demo.cut.layer: unknown key',
        'compress.apply("demo.cut"): demo.cut.ratio must be a number, not "half"',
        'compress.apply("demo.cut"): seed must be at least 0, not -1',
    ]
    assert planned == []


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        (("demo.cat", "zoo://tiny"), {}, "no stage is called `demo.cat`"),
        (("demo.cut", "nowhere"), {}, 'model "nowhere" is neither'),
        (("demo.cut", "zoo://tiny", 0.5), {}, "the parameters are a float, not a mapping"),
        (("demo.cut", "zoo://tiny", {"ratio": 0.5}), {"ratio": 0.5}, "ratio is given twice"),
        (("demo.cut", "zoo://tiny", {"ratio": object()}), {}, "no recipe can hold a object"),
    ],
)
def test_what_cannot_be_applied_is_one_clear_error(
    planned: list[Plan], arguments: Any, named: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        compress.apply(*arguments, **named)
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.fix


def test_a_stage_that_cannot_work_on_the_model_is_reported_as_in_a_plan(llama: Path, planned: list[Plan]) -> None:
    with pytest.raises(
        RecipeError, match=r'compress.apply\("demo.cut"\): demo.cut: this model has no component `nose`'
    ):
        compress.apply("demo.cut", llama, components=("nose",))


def test_data_that_a_stage_lacks_is_asked_for_as_python_gives_it(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prune\.depth needs calibration data") as caught:
        compress.apply("prune.depth", llama, cache=tmp_path / "cache")
    assert "add calibration=…" in [problem.fix for problem in caught.value.problems]


def test_the_public_names_are_listed_before_they_are_used() -> None:
    assert set(compress.__all__) <= set(dir(compress))
