"""Captions without images, and captions that lie otherwise beside them: taken where they are enough, else reported what makes them so."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from compress.catalogue import find_stage
from compress.errors import DataError, RecipeError
from compress.planning.plan import make_plan
from compress.sources.data import open_data
from compress.store.cache import Cache
from tests.fakes import pipeline, recipe, step

PROMPTS = ("a red cat", "a blue dog, asleep", 'a "green" bird')


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = pipeline(tmp_path / "model")
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    (made / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    return made


def rows_of(folder: Path, name: str = "prompts.jsonl") -> Path:
    (folder / name).write_text("\n".join(json.dumps({"text": text}) for text in PROMPTS))
    return folder / name


def made_there(fix: str, folder: Path) -> None:
    """Carry out what a remedy says, with this Python."""
    line = fix[fix.index("python -c") :].replace("python", f"'{sys.executable}'", 1)
    subprocess.run(line, shell=True, cwd=folder, check=True, timeout=60)


def test_captions_are_all_that_a_student_needs_whose_teacher_generates(model: Path, tmp_path: Path) -> None:
    asked = step(find_stage("distill.steps"), steps=2, guidance=3.0, latents="teacher")
    data = {"train": str(rows_of(tmp_path))}
    assert make_plan(recipe(model, asked, data=data), Cache(tmp_path / "cache")).data["train"].count == len(PROMPTS)


def test_latents_of_images_need_some(model: Path, tmp_path: Path) -> None:
    asked = step(find_stage("distill.guidance"), guidance=3.0, latents="pictures", place="r.yaml:3")
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe(model, asked, data={"train": str(rows_of(tmp_path))}), Cache(tmp_path / "cache"))
    (problem,) = caught.value.problems
    assert problem.place == "r.yaml:3"
    assert problem.fix.startswith("set latents: teacher")


def test_what_is_measured_needs_images(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds texts, and this model needs images with captions"):
        make_plan(recipe(model, data={"evaluate": str(rows_of(tmp_path))}), Cache(tmp_path / "cache"))


def test_prompts_one_a_line_are_no_single_caption(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe(model, data={"train": str(tmp_path / "prompts.txt")}), Cache(tmp_path / "cache"))
    (problem,) = caught.value.problems
    made_there(problem.fix, tmp_path)
    assert [item.text for item in open_data(str(tmp_path / "prompts.jsonl"), Path()).first(9)] == [*PROMPTS]


def test_the_metadata_of_a_folder_is_given_as_that_folder(model: Path, tmp_path: Path) -> None:
    file = rows_of(tmp_path, "metadata.jsonl")
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe(model, data={"train": str(file)}), Cache(tmp_path / "cache"))
    assert caught.value.problems[0].fix == f"give its folder: {tmp_path}"


@pytest.mark.parametrize("how", ["table", "beside"])
def test_captions_that_lie_otherwise_are_reported_what_makes_rows_of_them(how: str, tmp_path: Path) -> None:
    for number, text in enumerate(PROMPTS):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        if how == "beside":
            (tmp_path / f"{number}.txt").write_text(f"{text}\n")
    if how == "table":
        with (tmp_path / "metadata.csv").open("w", newline="") as stream:
            written = csv.writer(stream)
            written.writerows([("file_name", "text"), *((f"{n}.png", text) for n, text in enumerate(PROMPTS))])
    with pytest.raises(DataError, match=r"needs metadata\.jsonl") as caught:
        open_data(str(tmp_path), Path())
    fix = caught.value.problems[0].fix
    if how == "table":
        assert "read_csv('metadata.csv').to_json('metadata.jsonl', orient='records', lines=True)" in fix
        return
    made_there(fix, tmp_path)
    assert [item.text for item in open_data(str(tmp_path), Path()).first(9)] == [*PROMPTS]
