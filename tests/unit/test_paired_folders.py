"""Two folders of images are paired by file name: what is not alike in them is reported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.events import Event
from compress.store.cache import Cache
from evaluation.preflight.image_folders import ill_paired


def images(folder: Path, captions: Mapping[str, str], *, reported: bool = True) -> Path:
    folder.mkdir()
    for number, name in enumerate(captions):
        Image.effect_noise((8, 8), 20 + number).save(folder / name)
    rows = [{"file_name": name, "text": text} for name, text in captions.items()]
    if reported:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


ONE = {"0.png": "a cat", "1.png": "a dog"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ONE, ()),
        ({"0.png": "a cat ", "1.png": "a dog"}, ()),
        ({"0.png": "a car", "1.png": "a dog"}, ("1 of 2 have other captions there, the first 0.png",)),
        ({**ONE, "2.png": "a bird"}, ("they hold 2 and 3",)),
        ({**ONE, "1.png": "a tree", "2.png": ""}, ("they hold 2 and 3", "1 of 2 have other captions")),
    ],
)
def test_what_is_not_alike_in_two_folders_is_reported(
    other: dict[str, str], message: tuple[str, ...], tmp_path: Path
) -> None:
    found = ill_paired(images(tmp_path / "a", ONE), images(tmp_path / "b", other))
    assert bool(found) == bool(message)
    assert found.startswith("the images of two folders are paired by file name, and ") == bool(message)
    assert all(part in found for part in message)


def test_folders_without_captions_are_held_against_each_other_by_name(tmp_path: Path) -> None:
    folders = [images(tmp_path / name, ONE, reported=False) for name in "ab"]
    assert ill_paired(*folders) == ""


def test_an_evaluation_warns_of_it(tmp_path: Path) -> None:
    one, other = images(tmp_path / "a", ONE), images(tmp_path / "b", {**ONE, "1.png": "a boat"})
    recorded: list[Event] = []
    wanted = Wanted({"ssim": {}})
    request = prepare(str(other), str(one), wanted, Cache(tmp_path / "cache"), tmp_path / "out", recorded.append)
    assert len(request.warnings) == 1
    assert [(e.kind, e.what) for e in recorded if e.kind == "warning"] == [("warning", str(other))]
