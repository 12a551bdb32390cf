"""YAML as recipes use it: values by the rules of YAML 1.2, a place for everything, and limits that hold exactly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import Problem, RecipeError
from compress.recipe.yaml_tree import MAX_DEPTH, MAX_NODES, Node, parse_tree, resolve_scalar


def plain(text: str) -> Any:
    return parse_tree(text, "r.yaml").plain()


def refused(text: str) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_tree(text, "r.yaml")
    assert all(problem.fix for problem in caught.value.problems)
    return caught.value.problems


def place_of(text: str, path: str) -> str:
    node: Node | None = parse_tree(text, "r.yaml")
    for part in path.split("."):
        assert node is not None
        node = node.child(part)
    assert node is not None
    return node.place


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("0o17", 15),
        ("0xFF", 255),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-2.5E-3", -0.0025),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
    ],
)
def test_what_looks_like_a_value_is_one(text: str, value: object) -> None:
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "no",
        "on",
        "off",
        "y",
        "tRuE",
        "1_000",
        "12:30",
        "0b11",
        "0x",
        "1e",
        "e3",
        "1.2.3",
        "--1",
        "2026-01-01",
        "1%",
        "infinity",
        "9" * 41,
        "9" * 400,
        "０",
        "١٢",
    ],
)
def test_what_only_looks_like_one_stays_text(text: str) -> None:
    assert resolve_scalar(text) == text


@pytest.mark.parametrize("text", [".inf", "-.inf", "+.INF", ".nan", ".NaN", "1e400", "-1e400"])
def test_what_is_not_finite_is_refused(text: str) -> None:
    (problem,) = refused(f"a: {text}")
    assert problem.place == "r.yaml:1:4"
    assert "not a finite number" in problem.message


@pytest.mark.parametrize("text", ["'1'", '"true"', "'~'", '"1e3"', '".inf"', "|-\n  1", ">-\n  1"])
def test_quotes_and_blocks_are_text(text: str) -> None:
    assert isinstance(plain(f"a: {text}")["a"], str)


@given(st.integers(-(10**39) + 1, 10**40 - 1))
def test_every_whole_number_is_itself(number: int) -> None:
    assert resolve_scalar(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_itself(number: float) -> None:
    assert resolve_scalar(repr(number)) == number


def test_words_of_other_languages_and_windows_line_ends_are_fine() -> None:
    assert plain("name: größe\r\nnote: 日本語 🦙\r\n") == {"name": "größe", "note": "日本語 🦙"}


# Places


BLOCK = """a: 1
b:
  - x
  - c: [1, {d: "two"}]
    e:
      f: ~
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a", "1:4"),
        ("b", "3:3"),
        ("b.0", "3:5"),
        ("b.1", "4:5"),
        ("b.1.c", "4:8"),
        ("b.1.c.1.d", "4:16"),
        ("b.1.e.f", "6:10"),
    ],
)
def test_every_value_knows_its_line_and_column(path: str, place: str) -> None:
    assert place_of(BLOCK, path) == f"r.yaml:{place}"


def test_a_section_is_pointed_at_by_its_key_and_a_scalar_by_itself() -> None:
    root = parse_tree(BLOCK, "r.yaml")
    assert root.fields["b"].at == "r.yaml:2:1"
    assert root.fields["a"].at == "r.yaml:1:4"
    assert root.at == "r.yaml:1:1"


def test_an_alias_stands_where_it_is_used_and_what_is_in_it_where_it_was_written() -> None:
    text = "a: &here\n  x: 1\nb: *here\n"
    assert place_of(text, "b") == "r.yaml:3:4"
    assert place_of(text, "b.x") == "r.yaml:2:6"
    assert plain(text) == {"a": {"x": 1}, "b": {"x": 1}}


def test_an_anchor_given_twice_means_the_latest() -> None:
    assert plain("a: &v 1\nb: *v\nc: &v 2\nd: *v\n") == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_values_from_the_command_line_have_its_place() -> None:
    root = parse_tree("{a: [1, b: 2]}", "--set", fixed_place=True)
    assert {root.place, root.fields["a"].place, root.fields["a"].entries[1].place} == {"--set"}


@pytest.mark.parametrize("name", ["2", "-1", "x", "", "1.0", "999999999999", "²"])
def test_a_list_has_no_child_by_a_wrong_index(name: str) -> None:
    assert parse_tree("[a, b]", "r.yaml").child(name) is None


def test_a_key_that_looks_like_a_number_is_a_key() -> None:
    assert parse_tree("{1: a}", "r.yaml").child("1").value == "a"  # type: ignore[union-attr]
    assert plain("{true: a, ~: b}") == {"true": "a", "~": "b"}


# What is refused


def test_a_key_given_twice_names_both_places_however_deep_it_lies() -> None:
    (problem,) = refused("a:\n  b:\n    c: 1\n    d: 2\n    c: 3\n")
    assert problem.place == "r.yaml:5:5"
    assert problem.message == "`c` is given twice; first at 3:5"


def test_the_same_key_in_two_mappings_is_no_repetition() -> None:
    assert plain("a: {x: 1}\nb: {x: 1}\n") == {"a": {"x": 1}, "b": {"x": 1}}


def test_every_tag_repetition_and_merge_key_is_reported_in_one_go() -> None:
    problems = refused("a: !!python/object:os.system ls\nb: !x [1]\na: 2\nc: {<<: 1}\n")
    assert [p.place for p in problems] == ["r.yaml:1:4", "r.yaml:2:4", "r.yaml:3:1", "r.yaml:4:5"]


@pytest.mark.parametrize("tag", ["!!str", "!!int", "!!binary", "!!python/name:os.system", "!local", "!<x>"])
def test_no_tag_is_allowed_even_a_harmless_one(tag: str) -> None:
    assert "is not allowed" in refused(f"a: {tag} 1")[0].message


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert plain("{'<<': 1}") == {"<<": 1}


@pytest.mark.parametrize("text", ["{[a]: 1}", "{{a: 1}: 2}", "? - a\n: 1", "&x a: 1\n*x : 2"])
def test_a_key_is_plain_text(text: str) -> None:
    assert any("a key must be plain text" in p.message for p in refused(text))


@pytest.mark.parametrize("text", ["a: [1, 2", "a: 'b", "a: b: c", "a:\n  - b\n c: d", "{a: 1]", "a: @b", "%BAD\n---\n"])
def test_what_is_no_yaml_is_located(text: str) -> None:
    (problem,) = refused(text)
    assert problem.place.startswith("r.yaml:")
    assert "not valid YAML" in problem.message


# Limits


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_the_limit_on_depth_holds_exactly() -> None:
    assert parse_tree(nested(MAX_DEPTH + 1), "r.yaml").depth() == MAX_DEPTH
    assert "nested deeper" in refused(nested(MAX_DEPTH + 2))[0].message


def test_an_alias_counts_with_the_depth_of_what_it_stands_for() -> None:
    half = nested(MAX_DEPTH // 2)
    fits = f"a: &a {half}\nb: {'[' * (MAX_DEPTH // 2 - 1)}*a{']' * (MAX_DEPTH // 2 - 1)}"
    assert parse_tree(fits, "r.yaml").depth() <= MAX_DEPTH
    deeper = MAX_DEPTH // 2 + 2
    assert "nested deeper" in refused(f"a: &a {half}\nb: {'[' * deeper}*a{']' * deeper}")[0].message


def test_the_limit_on_values_holds_exactly() -> None:
    fits = f"[{', '.join('1' for _ in range(MAX_NODES - 1))}]"  # the list itself is one
    assert parse_tree(fits, "r.yaml").size() == MAX_NODES
    assert "once aliases are expanded" in refused(f"[1, {fits[1:]}")[0].message


def test_an_alias_counts_with_all_it_stands_for() -> None:
    block = f"a: &a [{', '.join('1' for _ in range(999))}]\n"
    assert parse_tree(block + f"b: [{', '.join(['*a'] * 18)}]", "r.yaml").size() <= MAX_NODES
    assert "once aliases" in refused(block + f"b: [{', '.join(['*a'] * 20)}]")[0].message


@given(st.recursive(st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=20))
def test_size_and_depth_are_those_of_the_value(value: Any) -> None:
    def size(part: Any) -> int:
        return 1 + sum(map(size, part)) if isinstance(part, list) else 1

    def depth(part: Any) -> int:
        return 1 + max(map(depth, part), default=-1) if isinstance(part, list) else 0

    tree = parse_tree(str(value), "r.yaml")
    assert tree.plain() == value
    assert tree.size() == size(value)
    assert tree.depth() == depth(value)
