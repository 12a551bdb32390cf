"""What a metric's parameters name on disk is looked at while planning, and a relative path starts at the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import compress
from compress.catalogue import find_metric, metric_names
from compress.errors import RecipeError, UserError
from compress.params import placed
from compress.recipe.values import started
from evaluation.features.dinov2 import KINDS
from evaluation.preflight.paths import TYPES, of_clip, of_each_image, of_features, of_layers, of_real_images
from tests.fakes import language_model, pipeline

RECIPE = """schema: 1
name: r
model: ./model
data: {{evaluate: zoo://digits/test}}
evaluate:
  metrics:
    - {metric}: {{{field}: {value}}}
"""


def folder(path: Path, **config: str) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def image(path: Path) -> str:
    path.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path / "a.png")
    return str(path)


def check(place: Path, metric: str, field: str, value: str) -> None:
    pipeline(place / "model", unet=(2, 3), vae=(2, 3))
    (place / "r.yaml").write_text(RECIPE.format(metric=metric, field=field, value=value))
    compress.check(place / "r.yaml", cache=place / "cache")


def test_every_parameter_that_names_features_or_real_images_is_looked_at() -> None:
    for name in metric_names():
        fields = set(find_metric(name).params.model_fields) & {"features", "reference"}
        assert set(placed(find_metric(name).params)) == fields, name


def test_extractors_are_reported_by_what_lies_there(tmp_path: Path) -> None:
    assert of_features("zoo://digits-clip") is of_clip("zoo://digits-clip") is of_layers("zoo://digits-clip") is None
    assert of_features(folder(tmp_path / "dino", model_type="dinov2")) is None
    assert {"clip", *KINDS} == set(TYPES)
    (tmp_path / "inception.pth").touch()
    assert of_features(str(tmp_path / "inception.pth")) is None
    (tmp_path / "alex.safetensors").touch()
    assert of_layers(str(tmp_path / "alex.safetensors")) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: str(at / "clop"), "no feature extractor lies there"),
        (lambda at: "zoo://clop", "clop"),
        (lambda at: folder(at / "bert", model_type="bert"), "type bert"),
        (lambda at: folder(at / "list", model_type="clip") + "/config.json", "no file of weights"),
    ],
)
def test_what_is_no_extractor_is_reported_with_a_remedy(make: object, message: str, tmp_path: Path) -> None:
    named = make(tmp_path)  # type: ignore[operator]
    for look in (of_features, of_clip):
        found = look(named)
        assert found is not None
        assert message in found.message
        assert found.fix


def test_captions_need_a_clip_with_its_tokenizer(tmp_path: Path) -> None:
    for named in (folder(tmp_path / "dino", model_type="dinov2"), folder(tmp_path / "bare", model_type="clip")):
        assert of_clip(named) is not None
    (tmp_path / "bare" / "tokenizer.json").touch()
    assert of_clip(str(tmp_path / "bare")) is None


def test_real_images_are_a_folder_of_them_or_their_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(2), sigma=np.eye(2))
    np.savez(tmp_path / "b.npz", mu=np.zeros(2), other=np.eye(2))
    (tmp_path / "c.npz").write_bytes(b"no archive")
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    assert of_real_images("") is of_real_images(str(tmp_path / "a.npz")) is None
    assert of_real_images(image(tmp_path / "real")) is None
    image(tmp_path / "hidden" / ".thumbnails")  # which nobody reads either
    for name, message in (
        ("a.txt", "no .npz"),
        ("empty", "no images"),
        ("hidden", "no images"),
        ("nowhere", "no such folder"),
        ("b.npz", "holds no sigma"),
        ("c.npz", "is no .npz of mu and sigma"),
    ):
        for look in (of_real_images, of_each_image):
            found = look(str(tmp_path / name))
            assert found is not None
            assert message in found.message
            assert found.fix
    assert of_each_image("") is of_each_image(str(tmp_path / "real")) is None


def test_a_metric_of_each_real_image_is_refused_their_statistics_when_planning(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(64), sigma=np.eye(64))
    metrics = ["fid", "kid", "precision", "recall", "cmmd", "fid_infinity"]
    (tmp_path / "r.yaml").write_text(
        f"schema: 1\nname: r\nmodel: {pipeline(tmp_path / 'model')}\ndata: {{evaluate: zoo://digits/test}}\n"
        f"evaluate: {{metrics: {metrics}, reference: a.npz}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    reported = [p.message for p in caught.value.problems]
    assert [m.split(".")[0] for m in reported if "holds their mean and covariance" in m] == [
        "kid",
        "precision",
        "recall",
        "cmmd",
    ]
    assert all(
        p.place.startswith(f"{tmp_path / 'r.yaml'}:5:") and "measure fid" in p.fix for p in caught.value.problems
    )
    with pytest.raises(UserError, match=r"kid.reference: this needs the features of each real image"):
        compress.evaluate(
            tmp_path / "model",
            tmp_path / "model",
            metrics=["kid"],
            reference=str(tmp_path / "a.npz"),
            data="zoo://digits/test",
            cache=tmp_path / "cache",
            out=tmp_path / "out",
        )


@pytest.mark.parametrize(("metric", "field"), [("clip_score", "features"), ("kid", "reference"), ("lpips", "features")])
def test_a_plan_refuses_what_is_not_there_at_its_line(metric: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        check(tmp_path, metric, field, "models/clop")
    (problem,) = (p for p in caught.value.problems if "clop" in p.message)
    assert problem.place.startswith(f"{tmp_path}/r.yaml:7:")
    assert problem.message.startswith(f"{metric}.{field}: ")
    assert str(tmp_path / "models/clop") in problem.message


def test_a_path_starts_at_the_recipe_that_it_is_written_in(tmp_path: Path) -> None:
    image(tmp_path / "real")
    check(tmp_path, "kid", "reference", "real")
    assert started("a/b", "x/r.yaml:3:4") == "x/a/b"
    for path in ("", "/a", "~/a", "zoo://a"):
        assert started(path, "x/r.yaml:3:4") == path
    assert started("a", "--set") == "a"


def test_a_path_with_nothing_there_is_reported_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for found in (of_real_images("nope"), of_layers("nope.safetensors")):
        assert found is not None
        assert found.fix.startswith(f"check the path: {tmp_path}/nope")
        assert "recipe" not in found.fix


def test_eval_refuses_it_too(tmp_path: Path) -> None:
    sides = [language_model(tmp_path / name) for name in "ab"]
    (tmp_path / "t.txt").write_text("a\n\nb\n")
    with pytest.raises(UserError, match=r"no_such|measures"):
        compress.evaluate(*sides, metrics={"kid": {"features": "no_such"}}, cache=tmp_path / "cache")
    shown = image(tmp_path / "shown")
    with pytest.raises(UserError, match=r"kid\.features: no feature extractor lies there: no_such"):
        compress.evaluate(shown, shown, metrics={"kid": {"features": "no_such"}}, cache=tmp_path / "cache")
