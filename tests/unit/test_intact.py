"""An image that is damaged behind a whole header is known before anything runs, with all others like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import compress
from compress.catalogue import find_stage
from compress.cli import main
from compress.commands.run import run_plan
from compress.data.images import read_image
from compress.errors import DamagedImages
from compress.events import silent
from compress.planning.plan import make_plan
from compress.recipe.values import EvalSpec
from compress.sources.data import open_data
from compress.store.cache import Cache
from evaluation.preflight import image_checks
from evaluation.preflight.image_checks import of_files, refuse_damaged, to_be_read
from tests.fakes import pipeline, recipe, step

NAMES = ("0.png", "1.jpg", "2.jpg", "3.png", "4.png", "5.png")
DAMAGED = ("1.jpg", "4.png")
COUNT = len(NAMES)


def images(folder: Path) -> Path:
    """Captioned images of noise, two of which end in the middle."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        if name in DAMAGED:
            (folder / name).write_bytes((folder / name).read_bytes()[:-300])
    rows = [{"file_name": name, "text": f"image {name}"} for name in NAMES]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


class Nothing:
    """An executor that runs nothing."""

    def run(self, *_: object) -> Any:
        pytest.fail("a stage ran")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return images(tmp_path / "real")


def named(error: DamagedImages) -> list[str]:
    assert all("no image that reads" in p.message and p.fix for p in error.problems)
    return [Path(p.place).name for p in error.problems]


def mended(folder: Path) -> None:
    for name in DAMAGED:
        Image.effect_noise((8, 8), 20).save(folder / name)


def test_headers_alone_do_not_tell(folder: Path) -> None:
    assert open_data(str(folder), Path()).count == COUNT
    assert Image.open(folder / DAMAGED[0]).size == (32, 32)


@pytest.mark.parametrize("where", ["data", "reference"])
def test_a_run_names_every_damaged_image_before_its_first_stage(where: str, folder: Path, tmp_path: Path) -> None:
    kid = {"reference": str(folder)} if where == "reference" else {}
    data = {"evaluate": str(folder) if where == "data" else "zoo://digits/test"}
    cache = Cache(tmp_path / "cache")
    asked = recipe(pipeline(tmp_path / "model"), data=data, evaluate=EvalSpec(metrics={"kid": kid}, samples=COUNT))
    plan = make_plan(asked, cache)
    with pytest.raises(DamagedImages) as caught:
        run_plan(plan, cache, tmp_path / "out", silent, Nothing())
    assert named(caught.value) == list(DAMAGED)
    assert caught.value.exit_code == 2
    mended(folder)
    with pytest.raises(pytest.fail.Exception, match="a stage ran"):
        run_plan(make_plan(asked, cache), cache, tmp_path / "out", silent, Nothing())


@pytest.mark.parametrize(
    ("params", "read"),
    [({}, COUNT), ({"captions": 2}, 2), ({"latents": "teacher"}, 0), ({"latents": "pictures", "captions": 5}, 5)],
)
@pytest.mark.parametrize("name", ["distill.steps", "distill.guidance"])
def test_a_run_names_every_damaged_image_that_a_student_is_to_learn_from(
    name: str, params: dict[str, Any], read: int, folder: Path, tmp_path: Path
) -> None:
    model, stage = pipeline(tmp_path / "model"), find_stage(name)
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    (model / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    asked = step(stage, guidance=3.0, **({"steps": 2} if name == "distill.steps" else {}), **params)
    plan = make_plan(recipe(model, asked, data={"train": str(folder)}), cache := Cache(tmp_path / "cache"))
    damaged = [one for one in NAMES[:read] if one in DAMAGED]
    wanted = DamagedImages if damaged else pytest.fail.Exception
    with pytest.raises(wanted) as caught:
        run_plan(plan, cache, tmp_path / "out", silent, Nothing())
    if isinstance(caught.value, DamagedImages):
        assert named(caught.value) == damaged


def test_a_stage_by_itself_names_them_too(folder: Path, tmp_path: Path) -> None:
    model = pipeline(tmp_path / "model")
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    (model / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(DamagedImages) as caught:
        compress.apply("distill.steps", model, steps=2, guidance=3.0, train=str(folder), cache=tmp_path / "cache")
    assert named(caught.value) == list(DAMAGED)


def test_an_evaluation_names_those_of_both_sides_and_of_the_reference(folder: Path, tmp_path: Path) -> None:
    other = images(tmp_path / "other")
    with pytest.raises(DamagedImages) as caught:
        compress.evaluate(
            other, folder, metrics={"kid": {}}, reference=str(folder), cache=tmp_path / "cache", out=tmp_path / "out"
        )
    assert sorted(named(caught.value)) == sorted([*DAMAGED, *DAMAGED])
    assert not (tmp_path / "out" / "events.jsonl").exists()


def test_statistics_of_images_name_all_that_do_not_read(folder: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["reference", str(folder), "--out", str(tmp_path / "a.npz")])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in DAMAGED)


def test_images_that_nobody_reads_are_not_looked_at(folder: Path) -> None:
    data = open_data(str(folder), Path())
    assert [len(p.reads) for p in to_be_read({"kid": {}}, data, 3)] == [3]
    assert not [*to_be_read({"clip_score": {}, "latency": {}}, data, COUNT)]
    elsewhere = {"kid": {"reference": str(folder)}}
    assert [len(p.reads) for p in to_be_read(elsewhere, data, 2)] == [COUNT]  # the whole reference, no item's own
    assert [len(p.reads) for p in to_be_read({"kid": {}}, open_data("zoo://digits/test", Path()), 5)] == []


def test_what_was_read_whole_is_not_read_again_until_it_changes(folder: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def read(file: Path) -> object:
        seen.append(file.name)
        return read_image(file)

    def look() -> int:
        seen.clear()
        refuse_damaged([of_files(sorted(folder.glob("*.[jp]*g")), read)], tmp_path)
        return len(seen)

    with pytest.raises(DamagedImages):
        look()
    with pytest.raises(DamagedImages):
        look()  # what does not read is no memory
    mended(folder)
    assert look() == COUNT
    assert look() == 0
    mended(folder)
    assert look() == COUNT


def test_another_reader_reads_them_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mended(folder)
    data = open_data(str(folder), Path())
    refuse_damaged(to_be_read({"kid": {}}, data, COUNT), tmp_path)
    monkeypatch.setattr(image_checks, "READER", -1)
    (folder / DAMAGED[0]).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DamagedImages):
        refuse_damaged(to_be_read({"kid": {}}, data, COUNT), tmp_path)
