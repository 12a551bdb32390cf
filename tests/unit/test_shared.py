"""Features and a reference are named once for all metrics that take them, in a recipe, on the command line and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import compress
from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.errors import ManyProblems, RecipeError
from compress.recipe.reading import read_text
from compress.recipe.shared_parameters import shared_names, takers
from compress.recipe.values import EvalSpec, Recipe
from compress.store.cache import open_cache
from compress.zoo import zoo_model

HEAD = "schema: 1\nname: x\nmodel: zoo://digits-diffusion\ndata: {evaluate: zoo://digits/test}\n"


def read(evaluate: str, file: str = "") -> Recipe:
    (found,) = read_text(f"{HEAD}evaluate:\n{evaluate}", file)
    return found


def test_what_is_shared_is_a_parameter_of_metrics() -> None:
    assert shared_names() == ("features", "reference")
    assert {"kid", "fid", "cmmd", "recall"} <= set(takers("reference")) <= set(takers("features"))
    assert "clip_score" in takers("features")
    assert "prompt_tokens" not in shared_names()  # which evaluate and flops both have, each its own


def test_each_metric_gets_what_it_has_and_leaves_open() -> None:
    found = read(
        "  features: ./clip\n  reference: ./real\n  metrics: [psnr, kid, {fid: {features: ./own}}, clip_score: ]"
    )
    metrics = found.evaluate.metrics
    assert metrics["psnr"] == {}
    assert (metrics["kid"]["features"], metrics["kid"]["reference"]) == ("./clip", "./real")
    assert (metrics["fid"]["features"], metrics["fid"]["reference"]) == ("./own", "./real")
    assert metrics["clip_score"] == {"features": "./clip"}


def test_a_recipe_without_them_is_read_as_before() -> None:
    metrics = "  metrics: [psnr, kid, {fid: {features: ./own}}]"
    assert read(metrics).evaluate.metrics == read(f"  features: ''\n  reference: ''\n{metrics}").evaluate.metrics


def test_a_shared_parameter_stands_where_it_is_given(tmp_path: Path) -> None:
    found = read("  features: ./clip\n  metrics: [kid, fid: {reference: ./real}]", str(tmp_path / "r.yaml"))
    assert found.place["evaluate.metrics.0.features"] == f"{tmp_path}/r.yaml:6:13"
    assert found.place["evaluate.metrics.1.features"] == f"{tmp_path}/r.yaml:6:13"
    assert found.place["evaluate.metrics.1.reference"] == f"{tmp_path}/r.yaml:7:35"
    assert found.folder("evaluate.metrics.0.features") == tmp_path


def test_changing_it_changes_every_metric_that_left_it_open() -> None:
    found = read("  features: ./clip\n  metrics: [kid, {fid: {features: ./own}}]")
    changed = found.with_({"evaluate.features": "./other"}).evaluate.metrics
    assert (changed["kid"]["features"], changed["fid"]["features"]) == ("./other", "./own")


@pytest.mark.parametrize("metrics", ["[kidd]", "[{kid: 3}]", "[{kid: {}, fid: {}}]", "[3]", "3", "{}", ""])
def test_whatever_is_wrong_with_metrics_is_reported_as_without_it(metrics: str) -> None:
    def problems(evaluate: str) -> set[str]:
        try:
            read(evaluate)
        except RecipeError as error:
            return {p.message for p in error.problems}
        return set()

    assert problems(f"  features: ./clip\n  metrics: {metrics}") == problems(f"  metrics: {metrics}")


def test_one_that_no_metric_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"{HEAD}evaluate:\n  features: ./clip\n  reference: ./real\n  metrics: [clip_score]"
    )
    with pytest.raises(RecipeError) as caught:
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    (found,) = [p for p in caught.value.problems if "none of these" in p.message]
    assert found.place.endswith("r.yaml:7:14")
    assert found.message == "evaluate.reference: none of these metrics has it"


def wanted(metrics: dict[str, Any], tmp_path: Path, **shared: str) -> Any:
    model = str(zoo_model("digits-diffusion"))
    asked = Wanted(metrics, data="zoo://digits/test", spec=EvalSpec(**shared))
    return prepare(model, model, asked, open_cache(tmp_path / "cache"), tmp_path / "out").spec.metrics


def test_eval_gives_them_to_its_metrics(tmp_path: Path) -> None:
    real, own = (str(tmp_path / name) for name in ("real", "own.npz"))
    Path(real).mkdir()  # kid needs each image
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(Path(real) / "0.png")
    np.savez(own, mu=np.zeros(2), sigma=np.eye(2))
    found = wanted({"kid": {}, "fid": {"reference": own}, "psnr": {}}, tmp_path, reference=real)
    assert (found["kid"]["reference"], found["fid"]["reference"], found["psnr"]) == (real, own, {})
    with pytest.raises(ManyProblems, match="none of these metrics has a reference"):
        wanted({"psnr": {}}, tmp_path, reference=real)
