"""Values from Python on their way into a recipe: what they become, and what no recipe can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import RecipeError
from compress.params import Params
from compress.recipe.python_values import tree_of, write_yaml
from compress.recipe.yaml_tree import parse_tree

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(
        ["1e5", "0o7", "007", ".inf", "no", "~", "", "<<", "=", "2024-01-01", "1:30", "${v}", "- a", "a: b"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=15,
)


@given(VALUES, st.booleans())
@settings(max_examples=500, deadline=None)
def test_what_is_written_reads_back_as_the_same_value(value: Any, one_line: bool) -> None:
    found = parse_tree(write_yaml({"a": value}, one_line=one_line), "r.yaml").fields["a"].plain()
    assert found == value
    assert type(found) is type(value)


@given(VALUES)
def test_the_tree_is_that_of_the_written_value_and_stands_at_one_place(value: Any) -> None:
    tree = tree_of(value, "here")
    assert tree.plain() == value
    assert tree.place == tree.at == "here"


class Inner(Params):
    sizes: tuple[int, ...] = (1, 2)


def test_what_python_has_beside_yaml_becomes_what_yaml_has() -> None:
    values = {"t": (1, 2), "s": {3}, "p": Path("a/b"), "i": np.int64(4), "f": np.float32(0.5), "r": Inner()}
    found = tree_of(values, "here").plain()
    assert found == {"t": [1, 2], "s": [3], "p": "a/b", "i": 4, "f": 0.5, "r": {"sizes": [1, 2]}}
    assert [type(found[key]) for key in "if"] == [int, float]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, object()]}, "a.1: no recipe can hold a object"),
        ({"a": float("nan")}, "a: nan is not a finite number"),
        ({"a": {1: 2}}, "a has the key 1"),
        (b"x", "no recipe can hold a bytes"),
    ],
)
def test_what_no_recipe_can_hold_is_reported_with_its_place(value: object, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tree_of(value, "here")
    (problem,) = caught.value.problems
    assert problem.place == "here"
    assert message in problem.message
    assert problem.fix
