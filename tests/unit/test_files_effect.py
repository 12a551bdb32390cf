"""A stage that leaves files of its own and nothing else: what it is held to, and where it is refused."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import derive, write_manifest
from compress.errors import RecipeError
from compress.planning.plan import make_plan
from compress.store.cache import Cache
from tests.fakes import CUT, TUNE, knowing, language_model, pipeline, recipe, step
from tests.unit.test_execute import Trusting, Work, add_one, breach, rewriting, run

LOOK = replace(CUT, name="demo.look", effects=frozenset({"files"}), files=("seen.json",))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr("compress.execution.execute.lent_checker", lambda: contextlib.nullcontext(Trusting()))
    return Cache(tmp_path / "cache")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


def looking(name: str = "seen.json", text: str = "{}", *, without: tuple[str, ...] = ()) -> Work:
    def work(artifact: Any, params: Any, context: Any) -> None:
        made = derive(artifact, context.out, without=("seen.json", *without), link=context.link)
        (context.out / name).write_text(text)
        write_manifest(made)

    return work


def test_it_leaves_its_file_which_travels_and_a_second_look_writes_it_anew(cache: Cache, llama: Path) -> None:
    first = replace(LOOK, run=looking())
    tune = replace(TUNE, run=lambda a, p, c: write_manifest(derive(a, c.out, link=c.link)))
    again = replace(LOOK, name="demo.again", run=looking(text="[]"))
    steps = (first, step(first)), (tune, step(tune, after="demo.look")), (again, step(again, after="demo.tune"))
    done = run(cache, llama, *steps)
    assert [(d.artifact.path / "seen.json").read_text() for d in done] == ["{}", "{}", "[]"]
    assert not LOOK.makes
    assert replace(LOOK, effects=frozenset({"files", "weights"})).makes


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (looking("other.json"), "it declared seen.json and left none"),
        (rewriting(add_one), "it declared files of its own and changed the weights of model"),
        (looking(without=("tokenizer.json",)), "it declared seen.json alone, and changed tokenizer.json"),
    ],
)
def test_what_it_did_not_declare_breaks_the_contract(
    cache: Cache,
    llama: Path,
    work: Work,
    message: str,
) -> None:
    assert breach(cache, llama, LOOK, work) == message


def test_a_file_more_than_declared_breaks_the_contract(cache: Cache, llama: Path) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        looking()(artifact, params, context)
        (context.out / "more.json").write_text("{}")

    assert breach(cache, llama, LOOK, work) == "it declared seen.json alone, and changed more.json"


def test_it_cannot_be_kept_for_its_speed(cache: Cache, tmp_path: Path) -> None:
    spec = replace(step(LOOK), if_faster=True)
    with knowing(LOOK), pytest.raises(RecipeError, match="changes nothing that could make the model faster"):
        make_plan(recipe(pipeline(tmp_path / "p"), spec), cache)
