"""Data sources open by name, have a digest that follows their content, and refuse what does not read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.errors import DataError
from compress.sources.data import open_data


def image_folder(folder: Path, captions: list[str]) -> Path:
    folder.mkdir()
    rows = []
    for index, caption in enumerate(captions):
        Image.fromarray(np.full((4, 5, 3), index, dtype=np.uint8)).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_an_image_folder_gives_captions_and_images(tmp_path: Path) -> None:
    data = open_data("set", image_folder(tmp_path / "set", ["one", "two"]).parent)
    assert (data.kind, data.count) == ("captioned_images", 2)
    item = data.first(5)[1]
    assert item.text == "two"
    assert item.image is not None
    assert item.image().shape == (4, 5, 3)
    assert item.image().max() == 1


def test_text_files_are_split_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert [i.text for i in open_data("a.txt", tmp_path).first(9)] == ["one\ntwo", "three"]


def test_jsonl_keeps_ids(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "one"}\n\n{"text": "two"}\n')
    assert [(i.id, i.text) for i in open_data("a.jsonl", tmp_path).first(9)] == [("x", "one"), ("1", "two")]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "c.txt").write_text("two")
    a, b, c = (open_data(n, tmp_path).digest for n in ("a.txt", "b.txt", "c.txt"))
    assert a == b != c


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{", "JSON"),
        ("a.jsonl", "[1]", "object"),
        ("a.jsonl", '{"caption": "x"}', "text"),
        ("a.jsonl", "", "no rows"),
        ("a.txt", "\n\n", "no text"),
    ],
)
def test_what_does_not_read_is_message_with_its_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        open_data(name, tmp_path)
    assert name in caught.value.problems[0].place


@pytest.mark.parametrize("source", ["nowhere", "zoo://digits", "zoo://digits/all", "zoo://digit/test"])
def test_unknown_sources_name_a_remedy(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(source, tmp_path)
    assert caught.value.problems[0].fix


def test_texts_are_no_remedy_where_images_are_needed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.txt").write_text("one")
    for source in ("set", "nowhere"):
        with pytest.raises(DataError) as caught:
            open_data(source, tmp_path, "captioned_images")
        fix = caught.value.problems[0].fix
        assert fix == "give a folder of images with their captions in metadata.jsonl, or zoo://digits/test"


def test_an_image_folder_without_metadata_says_so(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=r"metadata\.jsonl"):
        open_data("set", tmp_path)
