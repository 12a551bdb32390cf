"""Shipped baselines: measured once beside the recipe, found by every user's run, never mistaken for another model's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.events import Event
from compress.opening.text_generation import TextGeneration
from evaluation import precompute
from evaluation.observe import hardware
from evaluation.observe.collect import MANIFEST
from tests.tiny import tiny_llama

RECIPE = """
schema: 1
name: tiny
model: ./model
data: {evaluate: texts.txt}
stages: []
evaluate:
  samples: 5
  baseline: {dtype: float32}
  metrics: [perplexity]
"""


@pytest.fixture(scope="module", autouse=True)
def quick_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "facts", lambda device: {})
        yield


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its evidence, shipped."""
    place = tmp_path_factory.mktemp("shipped")
    tiny_llama(place / "model")
    (place / "texts.txt").write_text("\n\n".join(f"The array of values number {i}." for i in range(6)))
    (place / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARE_CACHE", str(place / "makers-cache"))
        precompute.ship(place / "recipe.yaml")
    return place


@pytest.fixture
def place(shipped: Path, tmp_path: Path) -> Path:
    """A user's copy of it, elsewhere, with an empty cache."""
    shutil.rmtree(tmp_path)
    shutil.copytree(shipped, tmp_path, ignore=shutil.ignore_patterns("makers-cache"))
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every document that a model has to read."""
    documents: list[str] = []
    real = TextGeneration.token_logprobs

    def reading(self: Any, texts: Any, batch: int) -> Any:
        documents.extend(texts)
        return real(self, texts, batch)

    monkeypatch.setattr(TextGeneration, "token_logprobs", reading)
    return documents


def run(place: Path, *overrides: str) -> tuple[Any, list[Event]]:
    recorded: list[Event] = []
    found = compress.run(
        place / "recipe.yaml", overrides, cache=place / "cache", out=place / "out", emit=recorded.append
    )
    return found, recorded


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_one_entry_a_kind_lies_beside_the_recipe_and_nothing_else(shipped: Path) -> None:
    entries = list((shipped / "evidence").iterdir())
    held = sorted(sorted(f.name for f in entry.iterdir()) for entry in entries)
    assert held == [["continuations.json", MANIFEST], [MANIFEST, "logprobs.safetensors"]]
    assert all(str(shipped) not in (entry / MANIFEST).read_text() for entry in entries)


def test_a_users_run_finds_it_and_reads_nothing_again(place: Path, read: list[str]) -> None:
    found, recorded = run(place)
    assert read == []
    assert found.rows[0].baseline.n == 5
    # An untrained model fits no text, which is reported; that evidence is lacking or of other content would be reported too.
    assert [e.what for e in recorded if e.kind == "warning"] == ["baseline"]


def test_a_users_run_writes_nothing_into_it(place: Path) -> None:
    before = files(place / "evidence")
    run(place, "evaluate.seed=3")
    assert files(place / "evidence") == before


@pytest.mark.parametrize("change", ["evaluate.samples=4", "evaluate.seed=1", "evaluate.baseline.dtype=bfloat16"])
def test_another_question_is_not_answered_by_it(change: str, place: Path, read: list[str]) -> None:
    run(place, change)
    assert len(read) in (4, 5)


def test_other_weights_are_not_taken_for_the_shipped_ones(place: Path, read: list[str]) -> None:
    before, _ = run(place)
    tiny_llama(place / "model", seed=5)
    after, _ = run(place)
    assert len(read) == 5
    assert after.rows[0].baseline.value != before.rows[0].baseline.value


def test_other_texts_are_not_taken_for_the_shipped_ones(place: Path, read: list[str]) -> None:
    (place / "texts.txt").write_text((place / "texts.txt").read_text().replace("values", "numbers"))
    run(place)
    assert len(read) == 5


def test_shipping_again_measures_anew_and_leaves_no_old_entry(
    place: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARE_CACHE", str(place / "cache"))
    before = files(place / "evidence")
    (place / "evidence" / "left-over").mkdir()
    precompute.ship(place / "recipe.yaml")
    assert len(read) == 5
    assert files(place / "evidence") == before
    assert not (place / "evidence" / "left-over").exists()
