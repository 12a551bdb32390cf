"""What `pare init` writes for a family runs to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compress
from compress.commands.init import init
from compress.proposing.machine import this_machine
from compress.recipe.values import BaselineSpec
from compress.store.cache import Cache
from tests.families import CALLS, MODELS
from tests.programs.family_table import TYPICAL, VARIANTS

FAMILIES = [name for name in MODELS if name not in VARIANTS]
WORDS = ("sum", "mean", "shape", "order", "index", "axis", "value", "array")


TOLD = BaselineSpec.model_fields  # arguments of a call that a recipe may say


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_runs_to_its_end(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = {**MODELS, **TYPICAL}[family](tmp_path / "model")
    text = "model_index.json" not in {file.name for file in folder.iterdir()}
    rows = [{"text": f"the {WORDS[i % 8]} of an array along {WORDS[(i + i // 8 + 1) % 8]} {i}"} for i in range(40)]
    (tmp_path / "held-out.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cache = Cache(tmp_path / "cache")
    file, proposal = init(str(folder), ["held-out.jsonl"] if text else [], "faster", "", None, cache, this_machine())
    called = {} if text else {name: value for name, value in CALLS.get(family, {}).items() if name in TOLD}
    small = [f"evaluate.baseline.{name}={value}" for name, value in called.items()]
    found = compress.run(file, overrides=small, cache=cache.root, out=tmp_path / "out")
    assert [stage["stage"] for stage in found.stages] == [step.stage for step in proposal.steps]
    assert (tmp_path / "out" / "result.json").is_file()
    assert {row.metric for row in found.rows} >= {"peak_memory", "size"}
