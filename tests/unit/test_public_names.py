"""What is API: each name of `compress.__all__` stays what it is after it was used, and reaches what the command line does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

import compress
from compress.catalogue import metric_names, stage_names
from compress.cli import app
from compress.errors import ModelError, UserError

RECIPE = """schema: 1
name: twice
model: zoo://docs-llama
stages:
  - prune.depth: {ratio: 0.25}
"""
WRONG = "no/such/place"
CALLS = {  # one call of each, cheap; those that would run a model are called with what they refuse
    "apply": f"compress.apply('prune.depth', {WRONG!r})",
    "available": "compress.available()",
    "cache": "compress.cache(store)",
    "check": "compress.check(recipe, cache=store)",
    "compare": f"compress.compare({WRONG!r}, {WRONG!r})",
    "doctor": "compress.doctor([recipe])",
    "evaluate": f"compress.evaluate({WRONG!r}, {WRONG!r}, metrics=['size'], cache=store)",
    "explain": "compress.explain('gates')",
    "load": f"compress.load({WRONG!r})",
    "plan": "compress.plan(recipe, cache=store)",
    "plan_all": "compress.plan_all(recipe, cache=store)",
    "reference": f"compress.reference({WRONG!r}, 'zoo://digits-clip', 'r.npz')",
    "report": f"compress.report([{WRONG!r}])",
    "run": f"compress.run({WRONG!r}, cache=store)",
    "run_all": f"compress.run_all({WRONG!r}, cache=store)",
    "schema": "compress.schema()",
    "text": "compress.text(compress.plan(recipe, cache=store))",
}


def test_each_public_function_can_be_called_twice_in_one_process(tmp_path: Path) -> None:
    """A sub-package of the same name would take its place after the first call."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert set(CALLS) == set(compress.__all__) - {"PareError"}
    lines = ["import compress", "recipe, store = 'recipe.yaml', 'cache'"]
    for call in [*CALLS.values(), *CALLS.values()]:
        lines += ["try:", f"    {call}", "except compress.PareError:", "    pass"]
    code = "\n".join([*lines, "print(all(callable(getattr(compress, name)) for name in compress.__all__))"])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (("list", "--json"), lambda store: compress.available()),
        (("schema",), lambda store: compress.schema()),
        (("cache", "--cache", "STORE", "--json"), lambda store: compress.cache(store)),
    ],
)
def test_the_command_line_prints_the_value_that_python_gets(
    arguments: tuple[str, ...], call: Callable[[Path], object], tmp_path: Path
) -> None:
    given = [str(tmp_path) if one == "STORE" else one for one in arguments]
    assert json.loads(CliRunner().invoke(app, given).stdout) == json.loads(json.dumps(call(tmp_path)))


def test_explain_is_the_text_that_the_command_line_prints() -> None:
    assert CliRunner().invoke(app, ["explain", "prune.depth"]).stdout == compress.explain("prune.depth") + "\n"
    with pytest.raises(UserError, match=r"is called `prune\.dept`"):
        compress.explain("prune.dept")


def test_what_is_available_is_what_lies_on_disk() -> None:
    found = compress.available()
    assert set(found["stages"]) == set(stage_names())
    assert set(found["metrics"]) == set(metric_names())


def test_a_floating_revision_is_pinned_before_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    monkeypatch.setattr("compress.commands.pin.pin_hub", lambda reference: f"{reference.partition('@')[0]}@{commit}")
    there = mock.Mock(
        side_effect=ModelError("cannot be fetched", fix="go online once")
    )  # the hub's client tries for half a minute
    monkeypatch.setattr("compress.sources.models.fetch_hub", there)
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("zoo://docs-llama", "hf://org/name@main"))
    with pytest.raises(compress.PareError, match="cannot be fetched"):
        compress.check(file, cache=tmp_path / "cache", pin=True)
    assert f"hf://org/name@{commit}" in file.read_text()
