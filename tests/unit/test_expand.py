"""One file to many recipes: what `extends`, `--set`, `vars` and `matrix` make of a tree, and where their mistakes are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.errors import Problem, RecipeError
from compress.recipe.expand import MAX_EXTENDS, MAX_RECIPES, extended, overridden, read_file, variants
from compress.recipe.yaml_tree import MAX_BYTES, parse_tree


def over(folder: Path, name: str = "top.yaml") -> Any:
    """What a file stands for once everything it extends is under it."""
    path = folder / name
    return extended(parse_tree(path.read_text(), str(path)), str(path))


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def put(text: str, *overrides: str) -> Any:
    problems: list[Problem] = []
    root = overridden(parse_tree(text, "r.yaml"), overrides, problems)
    assert problems == []
    return root.plain()


def put_wrong(text: str, override: str) -> Problem:
    problems: list[Problem] = []
    before = parse_tree(text, "r.yaml")
    assert overridden(before, [override], problems).plain() == before.plain()
    assert len(problems) == 1
    assert problems[0].place in ("--set", f"--set {override.partition('=')[0].strip()}")
    assert problems[0].fix
    return problems[0]


def fan(text: str) -> dict[str, Any]:
    problems: list[Problem] = []
    found = variants(parse_tree(text, "r.yaml"), problems)
    assert problems == []
    assert len({v.suffix for v in found}) == len(found)
    return {v.suffix: v.root.plain() for v in found}


def fan_wrong(text: str) -> list[str]:
    problems: list[Problem] = []
    variants(parse_tree(text, "r.yaml"), problems)
    assert all(p.fix for p in problems)
    return [f"{p.place} {p.message}" for p in dict.fromkeys(problems)]


# extends


def test_a_chain_of_files_is_laid_over_from_the_last(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="a: 1\nb: {x: 1, y: 1}\nc: [1, 2, 3]\nd: {z: 1}\n",
        middle="extends: base.yaml\na: 2\nb: {y: 2}\n",
        top="extends: middle.yaml\nb: {w: 3}\nc: [9]\nd: ~\n",
    )
    assert over(tmp_path).plain() == {"a": 2, "b": {"x": 1, "y": 2, "w": 3}, "c": [9], "d": None}


def test_each_file_looks_for_the_next_in_its_own_folder(tmp_path: Path) -> None:
    write(tmp_path, top="extends: sub/middle.yaml\n", sub__middle="extends: ../other/base.yaml\n", other__base="a: 1\n")
    assert over(tmp_path).plain() == {"a": 1}


def test_what_came_from_another_file_keeps_its_place_there(tmp_path: Path) -> None:
    write(tmp_path, base="a: 1\nb: {x: 1}\n", top="extends: base.yaml\nb: {y: 2}\n")
    fields = over(tmp_path).fields
    assert fields["a"].place == f"{tmp_path / 'base.yaml'}:1:4"
    assert fields["b"].fields["x"].place == f"{tmp_path / 'base.yaml'}:2:8"
    assert fields["b"].fields["y"].place == f"{tmp_path / 'top.yaml'}:2:8"


@pytest.mark.parametrize("value", ["1", "[a.yaml]", "''", "~", "{a: b}"])
def test_extends_is_one_file(tmp_path: Path, value: str) -> None:
    write(tmp_path, top=f"a: 1\nextends: {value}\n")
    with pytest.raises(RecipeError, match="extends must be a file") as caught:
        over(tmp_path)
    assert caught.value.problems[0].place.startswith(f"{tmp_path / 'top.yaml'}:2:")


def test_a_file_may_not_extend_itself_by_another_name(tmp_path: Path) -> None:
    write(tmp_path, top="extends: ./sub/../top.yaml\n", sub__x="a: 1\n")
    with pytest.raises(RecipeError, match="in a circle"):
        over(tmp_path)


def test_a_chain_without_end_is_cut(tmp_path: Path) -> None:
    for number in range(MAX_EXTENDS + 2):
        write(tmp_path, **{f"f{number}": f"extends: f{number + 1}.yaml\n"})
    with pytest.raises(RecipeError, match="in a circle"):
        over(tmp_path, "f0.yaml")


def test_a_mistake_in_an_extended_file_is_reported_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, base="a: 1\na: 2\n", top="extends: base.yaml\n")
    with pytest.raises(RecipeError) as caught:
        over(tmp_path)
    assert caught.value.problems[0].place == f"{tmp_path / 'base.yaml'}:2:1"


def test_a_file_that_does_not_read_is_reported_at_the_line_that_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"caf\xe9")
    for target, why in (
        ("none.yaml", "No such file"),
        ("folder", "is a folder, and no recipe"),
        ("latin.yaml", "not UTF-8"),
    ):
        write(tmp_path, top=f"extends: {target}\n")
        with pytest.raises(RecipeError, match=why) as caught:
            over(tmp_path)
        assert caught.value.problems[0].place == f"{tmp_path / 'top.yaml'}:1:10"


def test_a_byte_order_mark_is_no_part_of_the_text_and_reading_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_file(tmp_path / "mark.yaml") == "a: 1\n"
    (tmp_path / "large.yaml").write_bytes(b"x" * (MAX_BYTES + 1000))
    assert len(read_file(tmp_path / "large.yaml")) == MAX_BYTES + 1


# --set


STEPS = "stages:\n- a.b: {x: 1, y: {z: 2}}\n- c.d\n- e.f:\nevaluate: {metrics: [kid, size: {n: 1}]}\n"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("stages.0.x=5", "stages.0.a.b.x", 5),
        ("stages.0.y.z=[1, 2]", "stages.0.a.b.y.z", [1, 2]),
        ("stages.0.a.b.x=5", "stages.0.a.b.x", 5),
        ("stages.0.a.b.y.z=5", "stages.0.a.b.y.z", 5),
        ("stages.0.a.b={x: 5}", "stages.0.a.b.x", 5),
        ("stages.0.a=5", "stages.0.a.b.a", 5),
        ("stages.1.c.d.x=1", "stages.1.c.d.x", 1),
        ("evaluate.metrics.0.kid.n=3", "evaluate.metrics.0.kid.n", 3),
        ("evaluate.metrics.1.size=3", "evaluate.metrics.1.size.size", 3),
        ("stages.0.new=on", "stages.0.a.b.new", "on"),
        ("stages.1.x={q: 1e-4}", "stages.1.c.d.x", {"q": 1e-4}),
        ("stages.2.x=", "stages.2.e.f.x", None),
        ("evaluate.metrics.0.n=3", "evaluate.metrics.0.kid.n", 3),
        ("evaluate.metrics.1.n=3", "evaluate.metrics.1.size.n", 3),
        ("evaluate.samples=7", "evaluate.samples", 7),
        ("data.train=a=b", "data.train", "a=b"),
        (" seed =1", "seed", 1),
    ],
)
def test_an_override_reaches_the_value_it_names(override: str, path: str, value: object) -> None:
    found = put(STEPS, override)
    for part in path.replace("a.b", "a/b").replace("c.d", "c/d").replace("e.f", "e/f").split("."):
        found = found[int(part)] if isinstance(found, list) else found[part.replace("/", ".")]
    assert found == value
    assert type(found) is type(value)


def test_an_override_leaves_everything_else_as_it_was() -> None:
    before = parse_tree(STEPS, "r.yaml").plain()
    after = put(STEPS, "stages.0.x=5")
    assert after["stages"][0]["a.b"].pop("x") == 5
    before["stages"][0]["a.b"].pop("x")
    assert after == before


def test_a_whole_step_or_section_may_be_replaced() -> None:
    assert put(STEPS, "stages.1={g.h: {x: 1}}")["stages"][1] == {"g.h": {"x": 1}}
    assert put(STEPS, "stages=[]")["stages"] == []


def test_later_overrides_see_earlier_ones() -> None:
    assert put("a: 1", "b.c=1", "b.d=2", "b.c=3") == {"a": 1, "b": {"c": 3, "d": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "is not path=value"),
        ("=1", "is not path=value"),
        ("a..b=1", "is not path=value"),
        (".".join(["a"] * 30) + "=1", "is not path=value"),
        ("stages.3.x=1", "`stages` has no entry `3`"),
        ("stages.-1.x=1", "`stages` has no entry `-1`"),
        ("stages.²=1", "has no entry"),
        ("stages.0.x.y=1", "is 1 and has no `y`"),
        ("stages.0.prune.width.ratio=1", "`stages.0` is `a.b`, not `prune.width`"),
        ("evaluate.metrics.0.ssim.n=1", "`evaluate.metrics.0` is `kid`, not `ssim`"),
        ("a=[1", "not valid YAML"),
        ("a=!!python/name:os.system x", "is not allowed"),
    ],
)
def test_an_override_that_reaches_nothing_is_reported(override: str, message: str) -> None:
    assert message in put_wrong(STEPS, override).message


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("stages.0.c.d.n=1", "write stages.1.c.d.n"),
        ("stages.a.b.n=1", "write a number: 0 is a.b, 1 is c.d"),
        ("evaluate.metrics.9.n=1", "write a number: 0 is kid"),
        ("vars.l.7=1", "0 to 1"),
    ],
)
def test_an_override_of_the_wrong_entry_is_reported_the_right_path(override: str, fix: str) -> None:
    text = "stages: [a.b: {n: 0}, c.d: {n: 0}]\nevaluate: {metrics: [kid]}\nvars: {l: [1, 2]}"
    assert put_wrong(text, override).fix == fix


# vars and matrix


def test_without_a_matrix_there_is_one_recipe_and_no_suffix() -> None:
    assert fan("name: a\n") == {"": {"name": "a"}}


@pytest.mark.parametrize(
    ("value", "alone", "within"),
    [
        ("0.25", 0.25, "n-0.25"),
        ("3", 3, "n-3"),
        ("true", True, "n-true"),
        ("'007'", "007", "n-007"),
        ("1e-4", 1e-4, "n-0.0001"),
    ],
)
def test_a_variable_alone_keeps_its_type_and_within_text_is_written_out(value: str, alone: object, within: str) -> None:
    found = fan(f"vars: {{v: {value}}}\na: ${{v}}\nb: n-${{v}}\n")[""]
    assert found == {"a": alone, "b": within}
    assert type(found["a"]) is type(alone)


def test_a_variable_may_be_a_list_or_a_mapping_and_stand_anywhere() -> None:
    text = "vars: {l: [1, 2], m: {x: 1}}\na: {b: ['${l}', {c: '${m}'}]}\n"
    assert fan(text)[""] == {"a": {"b": [[1, 2], {"c": {"x": 1}}]}}


def test_a_dollar_that_begins_no_variable_is_a_dollar() -> None:
    assert fan("a: ['$', '$l', '$ {l}', '{l}', '${l']\n")[""] == {"a": ["$", "$l", "$ {l}", "{l}", "${l"]}


def test_several_variables_in_one_text() -> None:
    assert fan("vars: {a: x, b: 2}\nc: '${a}-${b}-${a}'\n")[""] == {"c": "x-2-x"}


def test_what_a_variable_holds_is_not_filled_again() -> None:
    assert fan("vars: {a: '$', b: '{c}'}\nx: '${a}${b}'\n")[""] == {"x": "${c}"}


def test_an_axis_takes_the_place_of_a_variable_of_its_name() -> None:
    assert [r["x"] for r in fan("vars: {a: 0, b: 5}\nmatrix: {a: [1, 2]}\nx: ['${a}', '${b}']\n").values()] == [
        [1, 5],
        [2, 5],
    ]


def test_suffixes_name_the_axes_in_order_and_can_stand_in_file_names() -> None:
    found = fan("matrix: {m: [a/b c, 'x: y'], n: [[1, 2], 0.5]}\nx: ['${m}', '${n}']\n")
    assert all(set(suffix) <= set("-.abcdefghijklmnopqrstuvwxyz0123456789") for suffix in found)
    assert list(found)[:2] == ["-m-a-b-c-n-a-list", "-m-a-b-c-n-0.5"]


def test_the_last_axis_turns_fastest_and_every_combination_comes_once() -> None:
    found = fan("matrix: {a: [1, 2], b: [1, 2, 3]}\nx: ['${a}', '${b}']\n")
    assert [r["x"] for r in found.values()] == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_the_limit_on_recipes_holds_exactly() -> None:
    numbers = ", ".join(map(str, range(MAX_RECIPES)))
    assert len(fan(f"matrix: {{a: [{numbers}]}}\nx: ${{a}}\n")) == MAX_RECIPES
    assert fan_wrong(f"matrix: {{a: [{numbers}, x]}}\nx: ${{a}}\n") == [
        f"r.yaml:1:10 the matrix makes {MAX_RECIPES + 1} recipes; at most {MAX_RECIPES}"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: ${a}\n", "r.yaml:1:4 no variable is called `a`"),
        ("vars: {ratio: 1}\nx: ${ration}\n", "r.yaml:2:4 no variable is called `ration`"),
        ("x: ${}\n", "r.yaml:1:4 `${}` names no variable"),
        ("vars: {a: [1]}\nx: n-${a}\n", "r.yaml:2:4 `${a}` is a list and cannot be part of a text"),
        ("vars: [a]\n", "r.yaml:1:1 vars must be a mapping, not a list"),
        ("matrix: 3\n", "r.yaml:1:9 matrix must be a mapping, not 3"),
        ("vars: {1a: 1}\n", "r.yaml:1:8 vars: `1a` is no variable name"),
        ("matrix: {a: []}\nx: 1\n", "r.yaml:1:10 matrix.a must be a list of values"),
        ("matrix: {a: [x y, x-y]}\nx: ${a}\n", "r.yaml:1:19 matrix.a has two values that would share the name `x-y`"),
        ("matrix: {a: [1], b: [1]}\nx: ${b}\n", "r.yaml:1:10 matrix.a is used nowhere"),
        ("vars: {a: 1, b: 2}\nx: ${b}\n", "r.yaml:1:11 vars.a is used nowhere"),
        ("vars: {a: 1}\nmatrix: {b: ['${a}']}\nx: ${b}\n", "r.yaml:2:10 matrix.b refers to a variable"),
    ],
)
def test_a_wrong_variable_or_axis_is_reported_where_it_stands(text: str, message: str) -> None:
    assert message in fan_wrong(text)


def test_a_mistake_in_every_combination_is_reported_once() -> None:
    assert fan_wrong("matrix: {a: [1, 2, 3]}\nx: ['${a}', '${b}']\n") == ["r.yaml:2:13 no variable is called `b`"]


def test_variables_of_a_recipe_below_need_no_use_and_those_given_here_do(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="vars: {a: 1, b: 2}\nx: ['${a}', '${b}']\n",
        top="extends: base.yaml\nvars: {b: 3, c: 4}\nx: ${b}\n",
    )
    problems: list[Problem] = []
    variants(overridden(over(tmp_path), ["vars.d=5"], problems), problems)
    assert [(p.place.rpartition("/")[2], p.message) for p in problems] == [
        ("top.yaml:2:17", "vars.c is used nowhere"),
        ("--set vars.d", "vars.d is used nowhere"),
    ]


def test_a_misspelt_variable_is_reported_once() -> None:
    assert fan_wrong("vars: {ratio: 1}\nx: ${ration}\n") == ["r.yaml:2:4 no variable is called `ration`"]
    (message,) = fan_wrong("vars: {a: 1}\n${a}: 1\n")
    assert message.endswith("is a key, and variables stand in values")
