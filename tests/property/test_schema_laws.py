"""Laws of the JSON Schema: what reading takes is valid, and what is valid reading takes, but for what no schema can tell."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from compress.catalogue import find_metric, find_stage, metric_names, stage_names
from compress.errors import Problem, RecipeError
from compress.recipe.entries import MAX_ENTRIES
from compress.recipe.gates import Bounds
from compress.recipe.reading import read_text
from compress.recipe.schema import recipe_schema
from tests.recipes import Tree, named, nonfinite, recipes, with_variables

# What only reading can tell, by what it says.
BEYOND_A_SCHEMA = {
    "letters of a name": r"name .* cannot name a file",
    "form of a model's name": r"model .* is (neither|no name|not pinned)",
    "letters of an id": r"id .* is no id",
    "ids are unique": r"already taken by an earlier step",
    "the step before": r"no earlier step is called",
    "a step beside": r"controls: |control .* is (named twice|the baseline)",
    "gates are of what is measured": r"this metric is not in evaluate\.metrics",
    "the recipe that it extends is there": r"cannot be read: ",
    "metrics are unique": r"metric .* is named twice",
    "a parameter class' own validator": r" is refused: ",
    "4.0 is an integer to JSON Schema": r"must be a whole number.*, not -?\d+\.0$",
}


@cache
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def refusal(tree: Tree, file: str = "r.yaml") -> tuple[Problem, ...]:
    """What reading has against a recipe; JSON is YAML."""
    try:
        read_text(json.dumps(tree, ensure_ascii=False), file)
    except RecipeError as error:
        return error.problems
    return ()


def whole(**sections: Any) -> Tree:
    return {"schema": 1, "name": "demo", "model": "zoo://tiny", **sections}


MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


@given(st.one_of(recipes(), with_variables(recipes())))
@MANY
def test_what_reading_takes_is_valid(tree: Tree) -> None:
    assume(not refusal(tree))
    assert list(validator().iter_errors(tree)) == []


@given(st.one_of(nonfinite(recipes()), with_variables(nonfinite(recipes()))))
@MANY
def test_a_nonfinite_recipe_is_refused_by_both_or_neither_but_for_what_no_schema_can_tell(tree: Tree) -> None:
    problems = refusal(tree)
    if not problems:
        validator().validate(tree)
    elif validator().is_valid(tree) and "vars" not in tree and "matrix" not in tree:
        reported = [p for p in problems if not any(re.search(beyond, p.message) for beyond in BEYOND_A_SCHEMA.values())]
        assert not reported


@pytest.mark.parametrize("name", stage_names())
@given(st.data())
@settings(max_examples=30, deadline=None)
def test_every_stage_is_valid_with_the_parameters_that_reading_takes(name: str, data: st.DataObject) -> None:
    tree = whole(stages=[data.draw(named(name, find_stage(name).params))])
    assert bool(refusal(tree)) <= any(" is refused: " in p.message for p in refusal(tree))
    assume(not refusal(tree))
    validator().validate(tree)


@pytest.mark.parametrize("name", metric_names())
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_every_metric_is_valid_with_the_parameters_that_reading_takes(name: str, data: st.DataObject) -> None:
    tree = whole(evaluate={"metrics": [data.draw(named(name, find_metric(name).params))]})
    assert refusal(tree) == ()
    validator().validate(tree)


@pytest.mark.parametrize("bound", Bounds.model_fields)
@pytest.mark.parametrize("metric", metric_names())
def test_every_bound_of_a_gate_is_valid(metric: str, bound: str) -> None:
    entry = {"accuracy": {"accuracy": {"tasks": ["x"]}}}.get(metric, metric)
    tree = whole(evaluate={"metrics": [entry]}, gates={metric: {bound: 2}})
    assert refusal(tree) == ()
    validator().validate(tree)


@pytest.mark.parametrize(
    "gate", [{}, {"two_sided": True}, {"within": 1, "speedup": 2}, {"at_least": 1, "at_most": 2}, {"within": None}]
)
def test_a_gate_has_one_bound(gate: Tree) -> None:
    tree = whole(evaluate={"metrics": ["size"]}, gates={"size": gate})
    assert not validator().is_valid(tree)
    (problem,) = refusal(tree)
    assert "give exactly one of within, worse_by, speedup, at_least, at_most" in problem.message


@given(base=recipes(), over=recipes(), lacking=st.sets(st.sampled_from(["schema", "name", "model"])))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_laid_over_another_recipe_is_valid_where_reading_takes_it(
    tmp_path: Path, base: Tree, over: Tree, lacking: set[str]
) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(base))
    tree = {"extends": "base.yaml", **{key: value for key, value in over.items() if key not in lacking}}
    assume(not refusal(tree, str(tmp_path / "top.yaml")))
    assert list(validator().iter_errors(tree)) == []


def test_a_gate_laid_over_another_may_leave_its_bound_to_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        json.dumps(whole(evaluate={"metrics": ["kid"]}, gates={"kid": {"within": "1%"}}))
    )
    tree = {"extends": "base.yaml", "gates": {"kid": {"two_sided": False}}}
    assert refusal(tree, str(tmp_path / "top.yaml")) == ()
    validator().validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        whole(vars={"s": []}, stages="${s}"),
        whole(vars={"s": "prune.width"}, stages=["${s}"]),
        whole(vars={"p": {}}, stages=[{"prune.width": "${p}"}]),
        whole(vars={"u": "unet"}, stages=[{"prune.width": {"components": ["${u}"]}}]),
        whole(vars={"n": 2}, stages=[{"build.compiled": {"profile": {"batch": [1, "${n}", 4]}}}]),
        whole(vars={"e": {}}, evaluate="${e}"),
        whole(vars={"g": {"at_most": 2}}, evaluate={"metrics": ["size"]}, gates={"size": "${g}"}),
        whole(
            vars={"n": None, "m": 2},
            evaluate={"metrics": ["size"]},
            gates={"size": {"at_most": "${m}", "speedup": "${n}"}},
        ),
        whole(vars={"n": None}, evaluate={"metrics": ["size"]}, gates={"size": {"at_most": 2, "speedup": "${n}"}}),
        whole(vars=None, matrix=None),
    ],
)
def test_a_variable_may_stand_wherever_a_value_may(tree: Tree) -> None:
    assert refusal(tree) == ()
    validator().validate(tree)


def test_the_schema_tells_what_it_can() -> None:
    for bad in (
        whole(stages=["accelerate.steps"]),  # which has a required parameter
        whole(stages=[{"accelerate.steps": None}]),
        whole(stages=["prune.width"] * (MAX_ENTRIES + 1)),
        whole(stages=[{"accelerate.steps": {"steps": 4, "components": ["unet"]}}]),
        {"extends": ""},
    ):
        assert refusal(bad)
        assert not validator().is_valid(bad), str(bad)[:80]
