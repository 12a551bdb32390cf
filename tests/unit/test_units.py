"""What of a source counts: each item once, none without a text, no item in two splits; all of it known when planning."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.errors import DataError, RecipeError, UserError
from compress.files.hashing import digest_file, digest_json
from compress.planning.plan import make_plan
from compress.planning.show import plan_dict, plan_text
from compress.sources.data import open_data
from compress.sources.units import distinct, open_units, overlap
from compress.store.cache import Cache
from evaluation.comparison.sides import viewpoints
from evaluation.preflight.image_folders import captions_of, describe_generated, images_for
from tests.fakes import knowing, language_model, pipeline, recipe


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def texts(path: Path, *found: str) -> str:
    return lines(path, [{"text": text} for text in found])


def images(folder: Path, *found: tuple[int, str]) -> str:
    """A folder of plain images of these shades, with these captions."""
    folder.mkdir()
    for index, (shade, _) in enumerate(found):
        image = np.full((4, 5, 3), shade, dtype=np.uint8)
        image[0, 0] = shade - 1 if shade else 1  # an image of one colour alone would be refused
        Image.fromarray(image).save(folder / f"{index}.png")
    lines(
        folder / "metadata.jsonl", [{"file_name": f"{i}.png", "text": caption} for i, (_, caption) in enumerate(found)]
    )
    return str(folder)


# Images that nobody names


def test_images_that_no_row_names_are_told_of(tmp_path: Path) -> None:
    source = images(tmp_path / "a", (10, "red"), (20, "blue"), (30, "red"))
    assert open_units(source, tmp_path).left_out == ""
    for name in ("left.png", "over.JPG", "notes.txt"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "a" / "0.png").read_bytes())
    said = f"2 of 5 images in {source} are named in no row of metadata.jsonl: left.png first"
    assert open_units(source, tmp_path).left_out == said
    (tmp_path / "a" / "within").mkdir()
    (tmp_path / "a" / "within" / "3.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    assert open_units(source, tmp_path).left_out == said  # of a folder that nobody names
    rows = [
        {"file_name": "within/3.png", "text": "red", "conditioning": "./left.png"},
        {"file_name": "0.png", "text": "red"},
    ]
    lines(tmp_path / "a" / "metadata.jsonl", rows)
    found = open_units(source, tmp_path).left_out
    assert found.startswith(
        f"3 of 6 images in {source} are named in no row of metadata.jsonl: 1.png first; 1 of 2 items"
    )


# Each item once


def test_copies_and_empty_texts_are_left_out_and_reported(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl", "one", "", "two", "one", "", "one")
    found = open_units(source, tmp_path)
    assert [(i.id, i.text) for i in found.first(9)] == [("0", "one"), ("2", "two")]
    assert found.count == 2
    assert found.left_out == f"2 of 6 items of {source} count: 2 are copies of others and 2 hold no text"
    assert [i.text for i in found.first(2)] == ["one", "two"]  # what does not count takes no one's place
    assert open_data(source, tmp_path).count == 6  # what is learnt from stays as it was given


def test_a_image_with_the_same_caption_counts_once_and_with_another_twice(tmp_path: Path) -> None:
    source = images(tmp_path / "set", (1, "a"), (1, "a"), (2, "a"), (1, "b"), (3, ""), (4, ""))
    found = open_units(source, tmp_path)
    assert [(i.id, i.text) for i in found.first(9)] == [
        ("0.png", "a"),
        ("2.png", "a"),
        ("3.png", "b"),
        ("4.png", ""),
        ("5.png", ""),
    ]
    assert found.left_out == f"5 of 6 items of {source} count: 1 is a copy of others"
    shown = found.first(9)[1].image
    assert shown is not None
    assert shown().max() == 2


def test_without_copies_nothing_changes(tmp_path: Path) -> None:
    for source in (texts(tmp_path / "a.jsonl", "one", "two"), images(tmp_path / "set", (1, "a"), (2, "a"))):
        plain, units = open_data(source, tmp_path), open_units(source, tmp_path)
        assert (units.digest, units.count, units.left_out) == (plain.digest, 2, "")
    assert (
        open_units("zoo://docstrings/test", tmp_path).left_out
        == open_units("zoo://digits/test", tmp_path).left_out
        == ""
    )
    # As digests were before anybody asked for units.
    assert open_data(str(tmp_path / "a.jsonl"), tmp_path).digest == digest_json([["0", "one"], ["1", "two"]])
    rows = [[f"{i}.png", "a", digest_file(tmp_path / "set" / f"{i}.png")] for i in (0, 1)]
    assert open_data(str(tmp_path / "set"), tmp_path).digest == digest_json(rows)


def test_the_digest_is_of_what_counts(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]
    plain = open_units(lines(tmp_path / "plain.jsonl", rows), tmp_path)
    copied = open_units(lines(tmp_path / "copied.jsonl", [rows[0], {"id": "e", "text": ""}, *rows, rows[1]]), tmp_path)
    assert copied.digest == plain.digest


def test_texts_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing but empty texts"):
        open_units(texts(tmp_path / "a.jsonl", "", ""), tmp_path)


def test_an_id_of_two_items_is_refused_with_both_places(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "one"}, {"text": "two"}, {"id": "7", "text": "three"}]
    source = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=rf"the id '7' of another item, at {source}:1") as caught:
        open_units(source, tmp_path)
    assert caught.value.problems[0].place == f"{source}:3"
    assert open_data(source, tmp_path).count == 3  # where nobody is scored, no one goes by a name


def test_an_id_that_nobody_gave_gives_way_to_one_that_somebody_did(tmp_path: Path) -> None:
    rows = [
        {"text": "zero"},
        {"text": "one", "id": 2},
        {"text": "two"},
        {"text": "three", "id": "2 (2)"},
        {"text": "z", "id": 0},
    ]
    source = lines(tmp_path / "a.jsonl", rows)
    found = open_units(source, tmp_path)
    assert [i.id for i in found.first(9)] == [row[0] for row in found.rows] == ["0 (2)", "2", "2 (3)", "2 (2)", "0"]
    assert found.digest == open_data(source, tmp_path).digest
    same = [{"text": "one", "id": 1}, {"text": "one"}, {"text": "two"}]  # which is a copy, whoever named it
    assert [i.id for i in open_units(lines(tmp_path / "b.jsonl", same), tmp_path).first(9)] == ["1", "2"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, 0, 1, 2, "1 (2)"])), min_size=1, max_size=7))
def test_ids_are_apart_and_those_given_stay(rows: list[tuple[str, object]]) -> None:
    owners: dict[str, str] = {}
    rows = [(text, id) for text, id in rows if id is None or owners.setdefault(str(id), text) == text]
    with tempfile.TemporaryDirectory() as folder:
        written = [{"text": text, "id": id} for text, id in rows]
        found = open_units(lines(Path(folder) / "a.jsonl", written), Path()).first(99) if rows else ()
    assert len({item.id for item in found}) == len(found) == len({text for text, _ in rows})
    firsts = [next(id for text, id in rows if text == item.text) for item in found]
    assert all(item.id == str(id) for item, id in zip(found, firsts, strict=True) if id is not None)


def captioned(folder: Path, *found: tuple[str, str]) -> str:
    """The folder with these rows, each of a file and a caption, in place of its own."""
    lines(folder / "metadata.jsonl", [{"file_name": file, "text": text} for file, text in found])
    return str(folder)


def test_each_caption_of_a_image_is_an_item(tmp_path: Path) -> None:
    folder = Path(images(tmp_path / "set", (1, "a"), (2, "b")))
    plain = open_units(str(folder), tmp_path)
    rows = [("0.png", "a"), ("0.png", "b"), ("1.png", "a"), ("0.png", "b"), ("0.png", "c")]
    found = open_units(captioned(folder, *rows), tmp_path)
    items = found.first(9)
    assert [(i.id, i.text, i.file) for i in items] == [
        ("0.png", "a", "0.png"),
        ("0.png (2)", "b", "0.png"),
        ("1.png", "a", "1.png"),
        ("0.png (3)", "c", "0.png"),
    ]
    assert "1 is a copy" in found.left_out
    assert [i.id for i in plain.first(9)] == ["0.png", "1.png"]
    assert open_data(str(folder), tmp_path).first(2)[1].id == "0.png"  # what is learnt from stays as it was


def test_a_folder_of_images_with_several_captions_is_looked_at_by_its_files(tmp_path: Path) -> None:
    one, other = (Path(images(tmp_path / name, (1, "a"), (2, "b"))) for name in ("one", "other"))
    rows = [("0.png", "a"), ("0.png", "b"), ("1.png", "a")]
    ids, _ = seen(tmp_path, captioned(one, *rows), captioned(other, *rows))
    assert ids == ("0.png", "0.png (2)", "1.png")
    own = distinct(captions_of(one)).first(9)
    assert [file.name for file in images_for(one, own)] == ["0.png", "0.png", "1.png"]
    asked = open_units(str(one), tmp_path).first(9)  # generated for captions of another set, each has a file
    with pytest.raises(DataError, match=r"no image for '0\.png \(2\)'"):
        images_for(other, asked)
    shutil.copy(other / "0.png", other / "0.png (2).png")
    assert [file.name for file in images_for(other, asked)] == ["0.png", "0.png (2).png", "1.png"]


def test_rows_whose_id_is_null_have_none(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", [{"id": None, "text": text} for text in ("one", "two")])
    assert [i.id for i in open_units(source, tmp_path).first(9)] == ["0", "1"]


# Known when planning


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.prepare()
    return store


def test_a_plan_tells_what_does_not_count(tmp_path: Path, cache: Cache) -> None:
    source = texts(tmp_path / "a.jsonl", "one", "one", "two")
    with knowing():
        found = make_plan(recipe(language_model(tmp_path / "llama"), data={"evaluate": source}), cache)
    message = f"2 of 3 items of {source} count: 1 is a copy of others"
    assert plan_text(found).splitlines()[-1].strip() == f"warning: {message}"
    assert plan_dict(found)["left_out"] == {"evaluate": message}


def test_a_plan_and_an_eval_refuse_alike(tmp_path: Path, cache: Cache) -> None:
    source = lines(tmp_path / "a.jsonl", [{"id": "x", "text": "one"}, {"id": "x", "text": "two"}])
    model = str(language_model(tmp_path / "llama"))
    with knowing(), pytest.raises(RecipeError) as planned:
        make_plan(recipe(model, data={"evaluate": source}), cache)
    with pytest.raises(UserError) as asked:
        prepare(model, model, Wanted({"size": {}}, data=source), cache, tmp_path / "out")
    (one,), (other,) = planned.value.problems, asked.value.problems
    assert other.message in one.message
    assert one.fix == other.fix


def shared(tmp_path: Path, cache: Cache, model: Path, mine: str, evaluated: str) -> str:
    try:
        with knowing():
            make_plan(recipe(model, data={"calibration": mine, "evaluate": evaluated}), cache)
    except RecipeError as error:
        return "; ".join(p.message.replace(str(tmp_path) + "/", "") for p in error.problems)
    return ""


def test_texts_in_two_splits_are_reported_with_the_first(tmp_path: Path, cache: Cache) -> None:
    model = language_model(tmp_path / "llama")
    evaluated = texts(tmp_path / "e.jsonl", "", "z", "b", "b", "c")
    mine = texts(tmp_path / "m.jsonl", "", "x", "c", "b", "b")
    assert shared(tmp_path, cache, model, mine, evaluated) == (
        "data.calibration shares 2 items with data.evaluate: the first stands at m.jsonl:3 and at e.jsonl:5"
    )
    assert shared(tmp_path, cache, model, texts(tmp_path / "o.jsonl", "", "x"), evaluated) == ""
    zoo = open_data("zoo://docstrings/test", tmp_path).first(2)[1]
    copied = texts(tmp_path / "z.jsonl", "x", zoo.text)
    assert f"z.jsonl:2 and at zoo://docstrings/test, {zoo.id}" in shared(
        tmp_path, cache, model, copied, "zoo://docstrings/test"
    )


def test_a_image_in_two_splits_is_reported_whatever_it_is_called_and_message_to_show(
    tmp_path: Path, cache: Cache
) -> None:
    model = pipeline(tmp_path / "generator", unet=(100,))
    evaluated = images(tmp_path / "e", (1, "a"), (2, "b"))
    mine = images(tmp_path / "m", (3, "a"), (4, "b"), (2, "a shade"))
    assert shared(tmp_path, cache, model, mine, evaluated) == (
        "data.calibration shares 1 item with data.evaluate: the first stands at m/metadata.jsonl:3 and at e/metadata.jsonl:2"
    )
    assert shared(tmp_path, cache, model, images(tmp_path / "o", (3, "a")), evaluated) == ""


def test_large_splits_are_compared_with_one_look_at_each_item(tmp_path: Path) -> None:
    """Of 30,000 texts each: whoever compared them pair by pair would still be at it."""
    for name, start in (("m", 0), ("e", 29_999)):
        texts(tmp_path / f"{name}.jsonl", *(f"text {i}" for i in range(start, start + 30_000)))
    from compress.sources.units import overlap

    found = overlap("train", *(open_units(str(tmp_path / f"{name}.jsonl"), tmp_path) for name in "me"))
    assert found.startswith("data.train shares 1 item with data.evaluate")


# Folders of images


def seen(tmp_path: Path, one: str, other: str, samples: int = 64) -> tuple[tuple[str, ...], str]:
    wanted = Wanted({"psnr": {}})
    request = prepare(one, other, wanted, Cache(tmp_path / "cache"), tmp_path / "out")
    views = viewpoints(request)
    assert [[item.id for item in view.items] for view in views] == [[item.id for item in views[0].items]] * 2
    return tuple(item.id for item in views[0].items), views[0].left_out


def test_images_that_neither_folder_tells_apart_count_once(tmp_path: Path) -> None:
    one = images(tmp_path / "one", (1, "a"), (1, "a"), (1, "a"), (2, "a"), (1, "b"))
    other = images(tmp_path / "other", (5, "a"), (5, "a"), (6, "a"), (5, "a"), (5, "b"))
    ids, message = seen(tmp_path, one, other)
    assert ids == ("0.png", "2.png", "3.png", "4.png")
    assert "4 of 5 items" in message
    for folder in (one, other):
        (Path(folder) / "metadata.jsonl").unlink()
    ids, message = seen(tmp_path, one, other)
    assert ids == ("0.png", "2.png", "3.png")
    assert "2 are copies of others" in message


def test_folders_without_copies_are_seen_as_before(tmp_path: Path) -> None:
    one, other = (images(tmp_path / name, (1, ""), (2, "")) for name in ("one", "other"))
    digest = describe_generated(Path(one), "text_to_image").digest
    (Path(one) / "metadata.jsonl").unlink()
    shutil.rmtree(other)
    shutil.copytree(one, other)
    assert seen(tmp_path, one, other) == (("0.png", "1.png"), "")
    request = prepare(one, other, Wanted({"psnr": {}}), Cache(tmp_path / "cache"), tmp_path / "out")
    view, _ = viewpoints(request)
    assert view.data_digest == digest_json(["0.png", "1.png"])
    assert view.artifact.digest == digest


def test_space_around_a_text_makes_no_other_text_and_space_alone_is_none(tmp_path: Path) -> None:
    for name, texts in (("e.jsonl", ["one", "  ", "two"]), ("c.jsonl", [" two\n", "three"])):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = open_units("e.jsonl", tmp_path)
    assert [item.text for item in found.first(9)] == ["one", "two"]
    assert found.left_out.endswith("1 holds no text")
    assert "shares 1 item with data.evaluate" in overlap("calibration", open_data("c.jsonl", tmp_path), found)
