"""Whatever is done to a recipe, reading and planning give a plan or located problems, never a traceback.

`PARE_MUTATIONS=100000` tries so many; each is made from its number, which the failure names.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

import compress
from compress.errors import PareError
from compress.recipe.reading import read_recipes
from tests.mutations import mutated

HOME = Path(compress.__file__).parent.parent / "recipes"
SHIPPED = sorted([*HOME.glob("*.yaml"), *HOME.glob("*/*.yaml")])
TRIED = int(os.environ.get("PARE_MUTATIONS", "1500"))
PLANNED = 40  # planning takes ten times as long as reading


def outcome(recipe: Path, seed: int, *, plan: bool) -> int:
    """The exit code that a recipe ends with: 0, or that of its error, whose problems all say what and where."""
    try:
        found = read_recipes(recipe)
        if plan and found:
            compress.plan_all(recipe, cache=recipe.parent / "cache")
    except PareError as error:
        return error.exit_code if error.problems and all(problem.message for problem in error.problems) else -1
    except Exception as error:
        raise AssertionError(f"mutation {seed}: {type(error).__name__}: {error}\n{recipe.read_bytes()!r}") from error
    return 0


@pytest.mark.timeout(7200)
def test_a_nonfinite_recipe_is_a_plan_or_located_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.sources.models.fetch_hub", _no_hub)
    texts, place = [path.read_text() for path in SHIPPED], tmp_path / "recipe.yaml"
    codes = {0: 0, 2: 0}
    for seed in range(TRIED):
        place.write_bytes(mutated(texts[seed % len(texts)], seed))
        code = outcome(place, seed, plan=seed % (TRIED // PLANNED or 1) == 0)
        assert code in codes, f"mutation {seed} ends with exit code {code}"
        codes[code] += 1
    assert all(codes.values()), "some are still good, and some are not"


def _no_hub(repo: str, revision: str, *, weights: bool) -> Path:
    raise compress.errors.ModelError("the hub is out of reach", place=repo)


@pytest.mark.parametrize("text", ["x" * 300, "x" * 5000, "a\0b", "../" * 400, "~nobody/x", "/", "/root/" * 50])
@pytest.mark.parametrize("key", ["model", "data", "extends"])
def test_no_path_is_too_odd(tmp_path: Path, key: str, text: str) -> None:
    body = {
        "schema": 1,
        "name": "odd",
        "model": "zoo://docs-llama",
        key: {"evaluate": text} if key == "data" else f"./{text}",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(body))
    assert outcome(tmp_path / "recipe.yaml", 0, plan=True) == 2


def test_a_number_gives_the_same_recipe_again() -> None:
    text = SHIPPED[0].read_text()
    assert [mutated(text, seed) for seed in range(50)] == [mutated(text, seed) for seed in range(50)]
    assert len({mutated(text, seed) for seed in range(50)}) > 40
