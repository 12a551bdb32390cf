"""One recipe laid over another: what `null` takes away, in a file and after `--set`, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compress.errors import RecipeError
from compress.recipe.gates import Gate
from compress.recipe.reading import read_recipes, read_text
from compress.recipe.schema import recipe_schema
from compress.recipe.values import Recipe

BASE = """schema: 1
name: base
model: zoo://tiny
evaluate: {metrics: [size, {kid: {resize: tf1}}, latency]}
gates: {size: {smaller: 2}, latency: {faster: 3}}
"""


@pytest.fixture
def over(tmp_path: Path) -> Any:
    """Reads a recipe that is laid over the one above; the schema must take it too."""
    (tmp_path / "base.yaml").write_text(BASE)

    def read(*overrides: str, **sections: Any) -> Recipe:
        tree = {"extends": "base.yaml", **sections}
        (tmp_path / "top.yaml").write_text(json.dumps(tree))
        (found,) = read_recipes(tmp_path / "top.yaml", overrides)
        jsonschema.Draft202012Validator(recipe_schema()).validate(tree)
        return found

    return read


def test_null_takes_an_inherited_gate_away(over: Any) -> None:
    assert set(over(gates={"size": None}).gates) == {"latency"}
    assert set(over("gates.latency=null").gates) == {"size"}
    assert set(over("gates.latency=", gates={"size": None}).gates) == set()
    assert over().with_({"gates.size": None}).gates == {"latency": Gate(faster=3)}


def test_a_mapping_laid_over_the_metrics_adds_changes_and_takes_away(over: Any) -> None:
    metrics = over(
        evaluate={"metrics": {"latency": None, "kid": {"features": "x"}, "fid": {}}}, gates={"latency": None}
    )
    assert list(metrics.evaluate.metrics) == ["size", "kid", "fid"]
    kid = metrics.evaluate.metrics["kid"]
    assert (kid["resize"], Path(kid["features"]).name) == ("tf1", "x")
    assert over(evaluate={"metrics": ["size"]}, gates={"latency": None}).evaluate.metrics == {"size": {}}
    assert list(over("evaluate.metrics.kid=null").evaluate.metrics) == ["size", "latency"]
    assert over("evaluate.metrics.kid.resize=pil").evaluate.metrics["kid"]["resize"] == "pil"


def test_a_bound_takes_another_s_place_where_that_is_taken_away(over: Any) -> None:
    assert over(gates={"size": {"smaller": None, "at_most": "1 GB"}}).gates["size"] == Gate(at_most="1 GB")
    with pytest.raises(RecipeError, match="not at_most and smaller") as caught:
        over(gates={"size": {"at_most": "1 GB"}})
    assert "is taken away by `null`" in caught.value.problems[0].fix


def test_a_gate_whose_metric_was_taken_away_is_reported_both_remedies(over: Any) -> None:
    with pytest.raises(RecipeError, match=r"gates\.latency: this metric is not in evaluate\.metrics") as caught:
        over(evaluate={"metrics": {"latency": None}})
    assert caught.value.problems[0].fix.endswith("or take the gate away: gates: {latency: null}")


@pytest.mark.parametrize(
    "text", [BASE.replace("{smaller: 2}", "null"), BASE.replace("[size, {kid: {resize: tf1}}, latency]", "{size: {}}")]
)
def test_where_nothing_is_inherited_there_is_nothing_to_take_away(text: str) -> None:
    with pytest.raises(RecipeError, match=r"must be a (mapping|list), not (nothing|a mapping)"):
        read_text(text, "r.yaml")


def test_null_that_meets_no_gate_is_a_mistake(over: Any) -> None:
    with pytest.raises(RecipeError, match=r"gates\.kid must be a mapping, not nothing") as caught:
        over(gates={"kid": None})
    assert "it brings none here" in caught.value.problems[0].fix


@pytest.mark.parametrize(("metric", "word"), [("kid", "worse_by"), ("latency", "speedup")])
@pytest.mark.parametrize("margin", ["20%", 3, 0.5])
def test_a_margin_alone_is_no_bound(metric: str, word: str, margin: Any, over: Any) -> None:
    with pytest.raises(RecipeError, match=rf"gates\.{metric} must be a mapping of a bound, not .* alone") as caught:
        over(gates={metric: margin})
    fix = caught.value.problems[0].fix
    assert fix.startswith(f"gates: {{{metric}: {{{word}: {margin}}}}}, or --set gates.{metric}.{word}={margin}")
    inherited = {"faster": None} if metric == "latency" else {}
    assert over(gates={metric: {**inherited, word: 2}}).gates[metric].given == (word,)
