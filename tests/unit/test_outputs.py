"""The program that shows whether two checkouts leave the same: it tries every stage, and overlooks no difference."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import compress
from compress.catalogue import find_stage
from tests.programs.outputs import (
    differences,
    digests_below,
    evidence_cases,
    evidence_in,
    image_cases,
    make_fixtures,
    recipe_of,
    text_cases,
    try_case,
    uncovered,
)

CASES = [*text_cases(), *image_cases(), *evidence_cases()]
FOUND: dict[str, Any] = {
    "one": {"keys": ["k"], "digests": ["d"], "files": {"a": "1", "b": "2"}},
    "two": {"keys": ["l"]},
}


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixtures")
    make_fixtures(folder)
    return folder


def test_every_stage_on_disk_is_tried() -> None:
    assert uncovered(CASES) == set()
    assert "prune.depth" in uncovered([c for c in CASES if "prune.depth" not in str(c.steps)])
    assert len({c.name for c in CASES}) == len(CASES)


def test_only_what_is_reproducible_in_behaviour_alone_is_not_run() -> None:
    for case in CASES:
        (last,) = case.steps[-1]
        assert case.only_key == (find_stage(last).reproducible == "behaviour"), case.name


def test_every_case_can_be_planned(fixtures: Path, tmp_path: Path) -> None:
    seen = set()
    for case in CASES:
        recipe = recipe_of(case, fixtures, tmp_path)
        seen.add(tuple(node.key for node in compress.plan(recipe, cache=tmp_path / "cache").nodes))
        assert yaml.safe_load(recipe.read_text())["stages"] == case.steps
    assert len(seen) > 0.85 * len(CASES)  # evidence is looked at through chains that others run too


def test_fixtures_are_made_once(fixtures: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in fixtures.rglob("*")}
    make_fixtures(fixtures)
    assert {f: f.stat().st_mtime_ns for f in fixtures.rglob("*")} == before


def test_a_case_is_made_once_and_found_again(fixtures: Path, tmp_path: Path) -> None:
    case, cache = next(c for c in CASES if c.name == "evidence of text: torch"), tmp_path / "cache"
    first, again = (try_case(case, fixtures, cache, tmp_path) for _ in range(2))
    assert len(first.anew) == 1 + len(evidence_in(cache)) == 5
    assert again.anew == ()
    assert again.found == first.found
    assert first.found["values"].keys() == {"perplexity", "token_agreement"}
    assert "pare.json" in first.found["files"]


def _change(found: dict[str, Any]) -> None:
    found["one"]["digests"] = ["e"]


def _add_a_file(found: dict[str, Any]) -> None:
    found["one"]["files"] = {**found["one"]["files"], "c": "3"}


def _lose_a_case(found: dict[str, Any]) -> None:
    del found["two"]


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (_change, ["one: digests differ: ['d'] and ['e']"]),
        (_add_a_file, ["one: files of c differ"]),
        (_lose_a_case, ["two: only in the first"]),
    ],
)
def test_a_difference_is_reported(
    change: Callable[[dict[str, Any]], None], reported: list[str], tmp_path: Path
) -> None:
    other = json.loads(json.dumps(FOUND))
    assert differences(FOUND, other) == []
    change(other)
    assert differences(FOUND, other) == reported
    for name, found in (("a", FOUND), ("b", other)):
        (tmp_path / name).write_text(json.dumps(found))
    command = [sys.executable, "-m", "tests.programs.outputs", "--compare"]
    done = subprocess.run([*command, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (1, reported)
    assert subprocess.run([*command, tmp_path / "a", tmp_path / "a"], capture_output=True, check=False).returncode == 0


def test_a_caches_own_notes_are_no_output(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / ".entry.json").write_text("{}")
    assert list(digests_below(tmp_path)) == ["unet/config.json"]
