"""Too few images for a metric of sets are known before any is generated, in the words of the metric itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import compress
from compress.catalogue import find_metric, metric_names
from compress.errors import RecipeError, UserError
from compress.sources.data import open_data
from compress.sources.units import open_units
from evaluation.distances import frechet, neighbours
from evaluation.preflight.image_counts import too_few
from evaluation.preflight.paths import INCEPTION, width_of
from evaluation.values import Sample
from tests.fakes import pipeline

ZOO = open_data("zoo://digits/test", Path())


def reported(name: str, samples: int, **values: Any) -> str:
    found = too_few(find_metric(name), values, ZOO, samples)
    return f"{found.message}: {found.fix}" if found else ""


def images(folder: Path, count: int, captions: int = 1) -> str:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(folder / f"{index}.png")
    rows = [{"file_name": f"{i}.png", "text": f"{n}"} for i in range(count) for n in range(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"model_type": "clip", "projection_dim": 32}, 32),
        ({"model_type": "clip"}, 512),
        ({"model_type": "dinov2", "hidden_size": 48}, 48),
        ({"model_type": "dinov2_with_registers"}, 768),
        ({"model_type": "bert", "hidden_size": 48}, None),
        ({"model_type": "clip", "projection_dim": "wide"}, None),
    ],
)
def test_how_wide_features_are_stands_in_the_config(config: dict[str, Any], width: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert width_of(str(tmp_path)) == width


def test_the_usual_widths_are_those_of_the_library(tmp_path: Path) -> None:
    from transformers import CLIPConfig, Dinov2Config, Dinov2WithRegistersConfig

    assert CLIPConfig().projection_dim == 512
    assert Dinov2Config().hidden_size == Dinov2WithRegistersConfig().hidden_size == 768
    (tmp_path / "weights.pth").touch()
    assert width_of(str(tmp_path / "weights.pth")) == INCEPTION
    assert width_of("zoo://digits-clip") == 64


@pytest.mark.parametrize(("name", "least"), [("fid", 65), ("fid_infinity", 130), ("precision", 4), ("recall", 4)])
def test_as_many_are_asked_for_as_the_metric_itself_takes(name: str, least: int) -> None:
    assert reported(name, least) == ""
    assert f"there are {least - 1}" in reported(name, least - 1)


def test_every_metric_that_can_refuse_few_tells_so_beforehand() -> None:
    for name in metric_names():
        source = Path(find_metric(name).measure.__code__.co_filename).read_text()
        assert ("refuse_few" in source) == (find_metric(name).enough is not None), name


def test_the_words_are_those_of_the_run() -> None:
    rows = np.random.default_rng(0).standard_normal((12, 64))
    with pytest.raises(UserError) as caught:
        frechet.refuse_few(Sample((), rows, rows + 1), "FID", 65)
    assert reported("fid", 12) == f"{caught.value.problems[0].message}: {caught.value.problems[0].fix}"
    assert reported("fid", 12).startswith("FID with 64 features needs 65 images, and there are 12")
    with pytest.raises(UserError) as caught:
        neighbours.refuse_few(Sample((), rows[:3], rows), "recall")
    assert reported("recall", 3) == f"{caught.value.problems[0].message}: {caught.value.problems[0].fix}"


def test_what_was_allowed_and_what_cannot_be_reported_is_left_to_the_run(tmp_path: Path) -> None:
    assert reported("fid", 12, allow_few=True) == reported("kid", 2) == reported("psnr", 1) == ""
    assert reported("fid", 12, features=str(tmp_path)) == ""  # which is no extractor, and reported as that
    assert reported("precision", 3, k=2) == reported("fid", 12, allow_few="maybe") == ""
    assert too_few(find_metric("fid"), {}, None, 12) is None


def test_real_images_are_counted_too(tmp_path: Path) -> None:
    few = images(tmp_path / "few", 9)
    assert reported("fid", 80, reference=few).startswith("FID with 64 features needs 65 real images, and there are 9:")
    assert "there are 3 images" in reported("precision", 80, reference=images(tmp_path / "three", 3))
    (tmp_path / "real.npz").touch()
    assert reported("fid", 80, reference=str(tmp_path / "real.npz")) == ""
    data = open_units(images(tmp_path / "captioned", 40, captions=2), tmp_path)
    found = too_few(find_metric("fid"), {}, data, 80)  # 80 captions, of 40 images
    assert found is not None
    assert found.message == "FID with 64 features needs 65 real images, and there are 40"


RECIPE = """schema: 1
name: r
model: ./model
data: {{evaluate: {data}}}
evaluate:
  samples: {samples}
  images_per_prompt: 9
  metrics:
    - fid
"""


@pytest.mark.parametrize(("given", "count"), [({"samples": 12}, 12), ({"samples": 99, "data": "./real"}, 20)])
def test_a_plan_tells_it_at_the_metric(given: Mapping[str, Any], count: int, tmp_path: Path) -> None:
    images(tmp_path / "real", 20)
    pipeline(tmp_path / "model", unet=(2, 3), vae=(2, 3))
    (tmp_path / "r.yaml").write_text(RECIPE.format(**{"data": "zoo://digits/test", **given}))
    with pytest.raises(RecipeError) as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    (problem,) = (p for p in caught.value.problems if "FID" in p.message)
    assert problem.message == f"FID with 64 features needs 65 images, and there are {count}"
    assert problem.place.startswith(f"{tmp_path}/r.yaml:9:")


def test_eval_tells_it_too(tmp_path: Path) -> None:
    one, other = (images(tmp_path / name, 6) for name in ("one", "other"))
    with pytest.raises(UserError, match="FID with 64 features needs 65 images, and there are 6"):
        compress.evaluate(one, other, data=one, metrics=["fid"], cache=tmp_path / "cache")
