"""`~name` where nobody has that name is a file like any other, wherever a path is given; `~` alone is a home."""

from __future__ import annotations

from pathlib import Path

import pytest

import compress
from compress.errors import ModelError, UserError
from compress.files.user_paths import expanded, file_and_config
from compress.recipe.options import read_metrics
from compress.recipe.reading import read_values
from compress.sources.models import find_source
from tests.fakes import language_model, pipeline

NOBODY = "~nobody-at-all"
RECIPE = "schema: 1\nname: t\nmodel: {model}\ndata: {{evaluate: {data}}}\nevaluate: {{metrics: [{metric}]}}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    language_model(tmp_path / "model")
    pipeline(tmp_path / "generator", unet=(2, 3), vae=(2, 3))
    return tmp_path


def written(here: Path, **message: str) -> Path:
    given = {"model": "./model", "data": "texts.txt", "metric": "size"} | message
    (here / "texts.txt").write_text("one\n\ntwo\n")
    (here / "r.yaml").write_text(RECIPE.format(**given))
    return here / "r.yaml"


@pytest.mark.parametrize(
    "message",
    [
        {"model": f"./{NOBODY}"},
        {"data": f"{NOBODY}/texts.txt"},
        {"model": "./generator", "data": "zoo://digits/test", "metric": f"kid: {{reference: {NOBODY}}}"},
        {"model": "./generator", "data": "zoo://digits/test", "metric": f"kid: {{features: {NOBODY}}}"},
    ],
)
def test_a_recipe_that_names_what_is_not_there_is_refused_by_that_name(message: dict[str, str], here: Path) -> None:
    with pytest.raises(UserError, match=NOBODY):
        compress.check(written(here, **message), cache=here / "cache")


def test_so_are_the_sides_of_a_comparison(here: Path) -> None:
    with pytest.raises(UserError, match=NOBODY):
        compress.evaluate(NOBODY, "model", metrics=read_metrics("size", []), cache=here / "cache", out=here / "out")


def test_what_is_there_is_read_and_written_under_that_name(here: Path) -> None:
    (here / "~texts.txt").write_text("one\n\ntwo\n")
    (here / NOBODY).mkdir()
    (found,) = compress.check(written(here, data="~texts.txt"), cache=f"{NOBODY}/cache")
    assert found.data.evaluate == "~texts.txt"
    run = compress.run(written(here), cache=f"{NOBODY}/cache", out=here / "out", save=f"{NOBODY}/mine")
    assert run.handed is not None
    assert Path(run.handed.path) == here / NOBODY / "mine"
    assert (here / NOBODY / "cache").is_dir()


def test_a_home_is_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert expanded("~/x") == here / "x"
    assert [expanded(path) for path in ("~", "~\0", "./~", "a/~")] == [here, Path("~\0"), Path("~"), Path("a/~")]


def test_a_folder_with_two_colons_in_its_name_is_that_folder(here: Path) -> None:
    language_model(here / "gpt::v2")
    assert find_source("./gpt::v2", here, None).artifact.path == here / "gpt::v2"
    assert compress.plan(written(here, model="./gpt::v2"), cache=here / "cache").source.artifact.writes_text
    assert file_and_config("./other::v2", here) == ("./other", "v2")


@pytest.mark.parametrize("address", ["http://[::1]:8000/v1", "HTTPS://host/v1#a::b"])
def test_an_address_with_two_colons_is_an_address(address: str) -> None:
    assert file_and_config(address) == (address, "")
    with pytest.raises(ModelError, match="is an endpoint"):
        compress.load(address)
    with pytest.raises(UserError, match="is an endpoint"):
        read_values({"schema": 1, "name": "r", "model": address}, "r.yaml")
