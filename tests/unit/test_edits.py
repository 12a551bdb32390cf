"""Data of edits: what a model is given beside each text is read from columns of metadata, and what is wrong with it is one located error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compress.data.edits import read_mask
from compress.data.fitted import fitted, fitted_mask
from compress.errors import DataError
from compress.sources.data import open_data
from compress.sources.units import open_units, overlap
from tests.editors import edits

Row = dict[str, Any]


def changed(folder: Path, change: Callable[[list[Row]], None], *, masks: bool = True) -> Path:
    """A folder of edits whose rows were changed."""
    edits(folder, masks=masks, count=4)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    change(rows)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_an_edit_has_input_mask_and_captions_of_both(tmp_path: Path) -> None:
    edits(tmp_path / "set", masks=True)
    data = open_data("set", tmp_path, "masked_images")
    item = data.first(2)[1]
    assert (data.kind, data.count, item.file, item.text) == ("masked_images", 8, "1.png", "blue")
    assert (item.input_file, item.mask_file, item.before) == ("1-input.png", "1-mask.png", "a picture")
    assert item.image is not None
    assert item.input is not None
    assert item.mask is not None
    before, after, mask = item.input(), item.image(), item.mask()
    assert mask.dtype == bool
    assert (before[~mask] == after[~mask]).all()
    assert (before[mask] == 255 - after[mask]).all()
    assert data.gives >= {"captions", "edits"}


def test_what_the_columns_do_not_concern_reads_as_before(tmp_path: Path) -> None:
    """A model that generates from text has nothing of them, and its keys stay what they were."""
    edits(tmp_path / "set", masks=True)
    data = open_data("set", tmp_path, "captioned_images")
    assert data.rows[0][:2] == ("0.png", "a red three")
    assert len(data.rows[0]) == 3
    assert data.first(1)[0].input is None
    assert "edits" not in data.gives
    assert open_data("set", tmp_path).digest == data.digest
    assert (
        len({open_data("set", tmp_path, kind).digest for kind in ("image_edits", "masked_images")} | {data.digest}) == 3
    )


@pytest.mark.parametrize("name", ["0.png", "0-input.png", "0-mask.png", "metadata.jsonl"])
def test_the_digest_follows_every_file(tmp_path: Path, name: str) -> None:
    folder, memory = edits(tmp_path / "set", masks=True), tmp_path / "memory"
    memory.mkdir()
    before = open_data("set", tmp_path, "masked_images", memory).digest
    assert open_data("set", tmp_path, "masked_images", memory).digest == before
    if name == "metadata.jsonl":
        (folder / name).write_text((folder / name).read_text().replace("a picture, blue", "a sea"))
    else:
        seen = np.array(Image.open(folder / name))
        seen[5, 5] = 255 - seen[5, 5]
        Image.fromarray(seen).save(folder / name)
    assert open_data("set", tmp_path, "masked_images", memory).digest != before


def test_the_other_name_of_the_input_is_taken(tmp_path: Path) -> None:
    def other(rows: list[Row]) -> None:
        for row in rows:
            row["source_file_name"] = row.pop("input_file_name")

    changed(tmp_path / "set", other)
    edits(tmp_path / "same", count=4)
    assert open_data("set", tmp_path, "image_edits").digest == open_data("same", tmp_path, "image_edits").digest


def test_captions_of_both_are_there_or_it_is_said_where_not(tmp_path: Path) -> None:
    changed(tmp_path / "set", lambda rows: rows[2].pop("edited_text"))
    data = open_data("set", tmp_path, "image_edits")
    assert "edits" not in data.gives
    assert data.lacks["edits"].endswith("metadata.jsonl:3 has not both `input_text` and `edited_text`")


def without(key: str) -> Callable[[list[Row]], None]:
    return lambda rows: rows[1].pop(key)


def given(**values: Any) -> Callable[[list[Row]], None]:
    return lambda rows: rows[1].update(values)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (without("input_file_name"), "image_edits", "needs input_file_name"),
        (without("mask_file_name"), "masked_images", "needs mask_file_name"),
        (given(input_file_name="no.png"), "image_edits", "input_file_name is 'no.png', and no file in this folder"),
        (given(mask_file_name=3), "masked_images", "mask_file_name is 3, and no file in this folder"),
        (given(source_file_name="0.png"), "image_edits", "input_file_name and source_file_name, which are the same"),
        (given(input_text=7), "image_edits", "input_text is a int"),
        (given(mask_file_name="metadata.jsonl"), "masked_images", "metadata.jsonl is no image"),
        (given(input_file_name="metadata.jsonl"), "image_edits", "metadata.jsonl is no image"),
        (given(mask_file_name="black.png"), "masked_images", "black.png is black throughout: nothing would be"),
        (
            given(mask_file_name="white.png"),
            "masked_images",
            "white.png is white throughout: all would be inpainted",
        ),
        (given(mask_file_name="large.png"), "masked_images", "large.png is 20 × 16 pixels, and 1-input.png 16 × 16"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_of_its_line(
    tmp_path: Path, change: Callable[[list[Row]], None], kind: Any, message: str
) -> None:
    folder = changed(tmp_path / "set", change)
    for name, pixels in {
        "black": np.zeros((16, 16), np.uint8),
        "white": np.full((16, 16), 255, np.uint8),
        "large": np.eye(16, 20, dtype=np.uint8) * 255,
    }.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    with pytest.raises(DataError) as caught:
        open_data("set", tmp_path, kind, tmp_path)
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.place == f"{folder}/metadata.jsonl:2"
    assert problem.fix


def test_a_mask_is_looked_at_again_where_its_image_changed(tmp_path: Path) -> None:
    folder, memory = edits(tmp_path / "set", masks=True), tmp_path / "memory"
    memory.mkdir()
    open_data("set", tmp_path, "masked_images", memory)
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(folder / "3-input.png")
    with pytest.raises(DataError, match=r"16 × 16 pixels, and 3-input\.png 16 × 8"):
        open_data("set", tmp_path, "masked_images", memory)


def test_a_mask_that_is_given_to_another_image_is_held_against_that_one(tmp_path: Path) -> None:
    folder, memory = edits(tmp_path / "set", masks=True), tmp_path / "memory"
    memory.mkdir()
    Image.fromarray(np.zeros((16, 48, 3), np.uint8)).save(folder / "0-input.png")
    Image.fromarray(np.eye(16, 48, dtype=np.uint8) * 255).save(folder / "0-mask.png")
    open_data("set", tmp_path, "masked_images", memory)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[0]["mask_file_name"], rows[1]["mask_file_name"] = rows[1]["mask_file_name"], rows[0]["mask_file_name"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"16 × 16 pixels, and 0-input\.png 48 × 16"):
        open_data("set", tmp_path, "masked_images", memory)


def test_a_file_that_is_known_as_an_image_is_still_looked_at_as_a_mask(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    folder = changed(tmp_path / "set", given(mask_file_name="plain.png", file_name="plain.png"))
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "plain.png")
    open_data("set", tmp_path, "image_edits", memory)
    with pytest.raises(DataError, match="black throughout"):
        open_data("set", tmp_path, "masked_images", memory)


def test_a_turned_photograph_has_the_size_that_it_is_shown_in(tmp_path: Path) -> None:
    folder = edits(tmp_path / "set", masks=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(folder / "0-input.png", exif=exif)
    Image.fromarray(np.eye(24, 16, dtype=np.uint8) * 255).save(folder / "0-mask.png")
    item = open_data("set", tmp_path, "masked_images").first(1)[0]
    assert item.input is not None
    assert item.mask is not None
    assert item.input().shape[:2] == item.mask().shape == (24, 16)


def test_splits_share_what_is_to_be_made_and_edits_of_one_input_are_units(tmp_path: Path) -> None:
    changed(tmp_path / "set", lambda rows: rows.append({**rows[0], "text": "another"}))
    data = open_units("set", tmp_path, "masked_images")
    assert [row[0] for row in data.rows] == ["0.png", "1.png", "2.png", "3.png", "0.png (2)"]
    edits(tmp_path / "other", masks=True, shade=1)
    other = open_units("other", tmp_path, "masked_images")
    assert overlap("train", data, other) == ""
    retouched = edits(tmp_path / "retouched", masks=True)
    for file in retouched.glob("?.png"):  # what is made of them is another, and what it is made of the same
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    assert " shares " in overlap("train", open_units("retouched", tmp_path, "masked_images"), data)
    assert "every item" in overlap("train", data, open_units("set", tmp_path, "masked_images"))


def test_a_mask_is_where_it_is_bright(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]]


def test_an_image_of_another_shape_is_cut_about_its_middle() -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 255
    assert (fitted(image, 8, 8) == 255).all()
    assert fitted(image, 8, 16) is image
    assert fitted_mask(image[..., 0] > 0, 4, 4).all()
    half = fitted_mask(image[..., 0] > 0, 4, 8)
    assert half.tolist() == [[False] * 2 + [True] * 4 + [False] * 2] * 4
