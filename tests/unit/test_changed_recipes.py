"""`recipe.with_`: another recipe, as if the file had stated so, or every reason why not."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compress
from compress.errors import RecipeError, UserError
from compress.recipe.reading import read_recipes, read_text
from compress.recipe.values import Recipe
from tests.fakes import CUT, STAGES, Cut, knowing, language_model, recipe, step

TEXT = "schema: 1\nname: demo\nmodel: zoo://tiny\nstages:\n- demo.cut: {ratio: 0.25}\n- demo.tune\nevaluate: {samples: 8, metrics: [size]}\n"


@pytest.fixture(autouse=True)
def demo_stages() -> Iterator[None]:
    with knowing(*STAGES):
        yield


def read(text: str = TEXT, *overrides: str) -> Recipe:
    (found,) = read_text(text, "folder/r.yaml", overrides)
    return found


def ratio(of: Recipe) -> float:
    assert isinstance(of.stages[0].params, Cut)
    return of.stages[0].params.ratio


def test_values_change_and_all_else_stays() -> None:
    before = read()
    after = before.with_({"stages.0.demo.cut.ratio": 0.3, "evaluate.samples": 32})
    assert (ratio(after), after.evaluate.samples) == (0.3, 32)
    assert (ratio(before), before.evaluate.samples) == (0.25, 8)
    assert (after.name, after.model, after.stages[1], after.file) == (
        before.name, before.model, before.stages[1], before.file,
    )  # fmt: skip


@pytest.mark.parametrize(
    "change", ["stages.0.ratio=0.3", "stages.0.demo.cut.ratio=0.3", "stages.0.demo.cut={ratio: 0.3}"]
)
def test_a_change_is_written_as_after_set(change: str) -> None:
    assert ratio(read().with_(change)) == ratio(read(TEXT, change)) == 0.3


@given(
    st.floats(0.01, 0.99),
    st.integers(2, 10**6),
    st.lists(st.integers(-5, 5), max_size=3),
    st.sampled_from(["1e5", "x"]),
)
@settings(max_examples=50, deadline=None)
def test_a_changed_recipe_is_the_one_that_a_file_would_say(
    share: float, samples: int, layers: list[int], train: str
) -> None:
    with knowing(*STAGES):
        written = (
            TEXT.replace("0.25", f"{share!r}, layers: {layers}").replace("samples: 8", f"samples: {samples}")
            + f"data: {{train: '{train}'}}\n"
        )
        reported = {
            "stages.0.ratio": share, "stages.0.layers": tuple(layers), "evaluate.samples": samples, "data.train": train,
        }  # fmt: skip
        one, other = read(written), read().with_(reported)
    assert (one.stages[0].params, one.evaluate, one.data) == (other.stages[0].params, other.evaluate, other.data)


def test_changes_add_up_and_may_be_changed_again() -> None:
    found = read().with_("stages.0.ratio=0.3").with_({"seed": 3}).with_("stages.0.ratio=0.4")
    assert (ratio(found), found.seed) == (0.4, 3)


def test_stages_come_and_go() -> None:
    assert read().with_({"stages": []}).stages == ()
    assert [s.stage for s in read().with_({"stages": ["demo.tune", {"demo.cut": {"ratio": 0.1}}]}).stages] == [
        "demo.tune",
        "demo.cut",
    ]


def test_a_variant_of_a_matrix_stays_that_variant() -> None:
    text = TEXT.replace("0.25", "'${r}'") + "matrix: {r: [0.1, 0.2]}\nvars: {n: 4}\nseed: '${n}'\n"
    _, second = read_text(text, "r.yaml")
    found = second.with_({"evaluate.samples": 9})
    assert (found.name, ratio(found), found.seed, found.evaluate.samples) == ("demo-r-0.2", 0.2, 4, 9)
    over = second.with_({"stages.0.ratio": 0.9})  # which leaves the matrix no use
    assert (over.name, ratio(over)) == ("demo-r-0.2", 0.9)
    assert second.with_({"name": "own"}).with_({"seed": 1}).name == "own"
    with pytest.raises(RecipeError, match=r"with_ matrix\.r: matrix is filled in already"):
        second.with_({"matrix.r": [0.5]})


def test_a_recipe_that_extends_another_needs_its_files_no_longer(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TEXT)
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nseed: 5\n")
    (found,) = read_recipes(tmp_path / "top.yaml", ["evaluate.samples=16"])
    for file in tmp_path.iterdir():
        file.unlink()
    other = found.with_("stages.0.ratio=0.3")
    assert (ratio(other), other.seed, other.evaluate.samples) == (0.3, 5, 16)
    assert other.place["evaluate.samples"] == "--set evaluate.samples"
    assert other.place["stages.0.ratio"] == "with_ stages.0.ratio"
    assert other.place["stages.0"].startswith(str(tmp_path / "base.yaml"))


def test_every_mistake_is_reported_at_once_with_its_place() -> None:
    with pytest.raises(RecipeError) as caught:
        read().with_({"stages.0.ratio": "half", "evaluate.samples": 1}, "sede=1", "seed", "stages.7.x=1")
    assert sorted(f"{p.place}: {p.message}" for p in caught.value.problems) == [
        "with_ evaluate.samples: evaluate.samples must be at least 2, not 1",
        "with_ sede: sede: unknown key",
        'with_ stages.0.ratio: demo.cut.ratio must be a number, not "half"',
        "with_ stages.7.x: `stages` has no entry `7`",
        "with_: `seed` is not path=value",
    ]
    with pytest.raises(RecipeError, match="no recipe can hold a object"):
        read().with_({"seed": object()})


def test_what_a_change_breaks_elsewhere_is_reported_where_that_stands() -> None:
    text = TEXT.replace("- demo.tune", "- demo.tune: {from: demo.cut}")
    with pytest.raises(RecipeError, match=r'folder/r.yaml:6:21: from: no earlier step is called "demo.cut"'):
        read(text).with_({"stages.0": "demo.tune"})


def test_a_recipe_goes_from_process_to_process() -> None:
    found = pickle.loads(pickle.dumps(read()))
    assert found == read()
    assert found.with_("seed=3") == read().with_("seed=3")


def test_what_was_changed_is_planned_and_run_like_a_file(tmp_path: Path) -> None:
    (found,) = read_text(TEXT.replace("zoo://tiny", str(language_model(tmp_path / "model"))), "r.yaml")
    keys = [
        [node.key for node in compress.plan(one, sets, cache=tmp_path / "cache").nodes]
        for one, sets in ((found, ()), (found, ["stages.0.ratio=0.5"]), (found.with_({"stages.0.ratio": 0.5}), ()))
    ]
    assert keys[0] != keys[1] == keys[2]


def test_a_recipe_made_without_reading_cannot_be_read_anew() -> None:
    made: Any = recipe("zoo://tiny", step(CUT))
    with pytest.raises(UserError, match="was never read"):
        made.with_("seed=1")
