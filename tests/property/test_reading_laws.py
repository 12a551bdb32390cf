"""Laws of reading: nothing a user writes crashes it, and every place it names is where the thing stands."""

from __future__ import annotations

import contextlib

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import RecipeError
from compress.recipe.reading import read_text
from compress.recipe.sections import TOP_KEYS
from compress.recipe.values import Recipe
from compress.recipe.yaml_tree import Node, parse_tree

MARKS = [
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "&a ",
    "*a",
    "!!int ",
    "${a}",
    "<<",
    "? ",
    "'",
    '"',
    "\t",
    "---\n",
    "#",
    "%",
    "\x00",
    "é",
    "�",
]
WORDS = ["1", "1e-4", ".inf", "zoo://x", "hf://o/n", "source", "id", "from"]
PIECES = st.sampled_from([*TOP_KEYS, *MARKS, "|", *WORDS])
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join))


def is_text_to_both(text: str) -> bool:
    """PyYAML writes `0E0` and `1e5` unquoted, for to YAML 1.1 they are text; to pare's YAML 1.2 they are numbers."""
    try:
        float(text)
    except ValueError:
        return not text.startswith("0o")
    return False


SHORT = st.text(max_size=8).filter(is_text_to_both)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), SHORT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SHORT, inner, max_size=3)),
    max_leaves=12,
)


def read(text: str, *overrides: str) -> tuple[Recipe, ...]:
    """The recipes, or none; any error but a RecipeError with located problems fails the test."""
    try:
        return read_text(text, "r.yaml", overrides)
    except RecipeError as error:
        if not all(problem.place and problem.message for problem in error.problems):
            raise AssertionError(f"a problem without place or message: {error.problems}") from error
        return ()


@given(TEXTS)
@settings(max_examples=400, deadline=None)
def test_any_text_is_recipes_or_located_problems(text: str) -> None:
    assert all(isinstance(recipe, Recipe) for recipe in read(text))


@given(
    st.dictionaries(st.sampled_from([key for key in TOP_KEYS if key != "extends"]), VALUES, max_size=6),
    st.lists(TEXTS, max_size=2),
)
@settings(max_examples=300, deadline=None)
def test_any_values_under_the_right_keys_are_recipes_or_located_problems(
    body: dict[str, object], overrides: list[str]
) -> None:
    text = yaml.safe_dump({"schema": 1, "name": "a", "model": "zoo://b", **body}, sort_keys=False, allow_unicode=True)
    found = read(text, *overrides, *(f"stages.0.{one}" for one in overrides))
    assert all(isinstance(recipe, Recipe) for recipe in found)


@given(
    st.lists(st.text(alphabet="abcdefg", min_size=1, max_size=5), min_size=1, max_size=6, unique=True),
    st.integers(1, 4),
)
def test_places_are_where_keys_and_values_stand(keys: list[str], width: int) -> None:
    pad = " " * width
    text = "".join(f"{key}:\n{pad}- {pad}'{key}'\n" for key in keys)
    lines = text.splitlines()
    for key, node in parse_tree(text, "r.yaml").fields.items():
        assert pointed(lines, node.key).startswith(f"{key}:")
        assert pointed(lines, node.entries[0].place) == f"'{key}'"


@given(VALUES)
def test_what_yaml_wrote_reads_back(value: object) -> None:
    text = yaml.safe_dump({"a": value}, default_flow_style=False, allow_unicode=True)
    found: Node | None = None
    with contextlib.suppress(RecipeError):
        found = parse_tree(text, "r.yaml")
    if found is not None and "!!" not in text:
        assert yaml.safe_load(yaml.safe_dump(found.plain())) == yaml.safe_load(text)


def pointed(lines: list[str], place: str) -> str:
    _, line, column = place.rsplit(":", 2)
    return lines[int(line) - 1][int(column) - 1 :]
