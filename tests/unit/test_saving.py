"""`--save FOLDER`: the candidate as plain files of its own; what stands in the way is known before anything runs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from compress.artifact import MANIFEST
from compress.errors import ManyProblems, UserError
from compress.events import Event
from compress.execution.saving import folders, save
from compress.model.describing import describe
from compress.planning.plan import Plan
from tests.fakes import language_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As the hub's client lays it out: links into a store of blobs, a licence and a tokenizer beside the weights."""
    folder, blobs = language_model(tmp_path / "model"), tmp_path / "blobs"
    blobs.mkdir()
    for name in ("LICENSE", "tokenizer.json"):
        (blobs / name).write_text(name)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(blobs / name)
    os.link(folder / "config.json", blobs / "config.json")
    return folder


def plan(name: str = "tiny", key: str = "k1") -> Plan:
    return cast("Plan", SimpleNamespace(recipe=SimpleNamespace(name=name), nodes=[SimpleNamespace(key=key)]))


def test_every_file_is_copied_and_none_is_a_link(model: Path, tmp_path: Path) -> None:
    kept = save(describe(model), tmp_path / "deep" / "mine")
    assert {f.name for f in kept.iterdir()} == {f.name for f in model.iterdir()}
    assert not any(f.is_symlink() or f.stat().st_nlink > 1 for f in kept.rglob("*") if f.is_file())
    assert describe(kept).components == describe(model).components
    assert [f.name for f in kept.parent.iterdir()] == ["mine"]


def test_a_copy_that_was_cut_off_is_made_anew(model: Path, tmp_path: Path) -> None:
    (tmp_path / ".mine.part").mkdir()
    (tmp_path / ".mine.part" / "half").write_text("")
    (tmp_path / "mine").mkdir()
    kept = save(describe(model), tmp_path / "mine")
    assert not (kept / "half").exists()
    assert not (tmp_path / ".mine.part").exists()


def test_a_link_to_an_empty_folder_is_filled(model: Path, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "large disk")
    save(describe(model), tmp_path / "mine")
    assert describe(tmp_path / "mine").components == describe(model).components
    assert (tmp_path / "mine").is_symlink()


def test_the_same_candidate_may_be_saved_twice_and_no_other_over_it(model: Path, tmp_path: Path) -> None:
    kept = save(describe(model), tmp_path / "mine")
    before = (kept / "config.json").stat().st_ino
    assert (save(describe(model), kept) / "config.json").stat().st_ino == before
    (kept / "tokenizer.json").write_text("mine by now")
    with pytest.raises(UserError, match="holds something else already"):
        save(describe(model), kept)
    assert (kept / "tokenizer.json").read_text() == "mine by now"


def test_a_folder_that_holds_this_candidate_already_is_reported(model: Path, tmp_path: Path) -> None:
    reported: list[Event] = []
    save(describe(model), tmp_path / "mine", reported.append)
    assert reported == []
    save(describe(model), tmp_path / "mine", reported.append)
    assert [event.message for event in reported] == [
        f"{tmp_path / 'mine'} holds this very candidate already, and is left as it is"
    ]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no such file system here")
def test_a_place_that_takes_no_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ManyProblems, match="--save /proc/mine: cannot be written"):
        folders("/proc/mine", [plan()], tmp_path / "cache")
    folders(tmp_path / "mine", [plan()], tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="cannot be copied here: No space left") as caught:
        save(describe(model), tmp_path / "mine")
    assert "--save" in caught.value.problems[0].fix
    assert not {"mine", ".mine.part"} & {f.name for f in tmp_path.iterdir()}


def test_a_matrix_gets_a_folder_for_each_recipe(tmp_path: Path) -> None:
    assert folders(None, [plan(), plan()], tmp_path / "cache") == [None, None]
    assert folders(tmp_path / "a", [plan()], tmp_path / "cache") == [tmp_path / "a"]
    assert folders(tmp_path / "a", [plan("x"), plan("y")], tmp_path / "cache") == [tmp_path / "a/x", tmp_path / "a/y"]


def test_a_folder_that_is_taken_is_refused_each_at_once(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("")
    with pytest.raises(ManyProblems) as caught:
        folders(tmp_path, [plan("x"), plan("y"), plan("z")], tmp_path / "cache")
    assert [(p.place, p.message) for p in caught.value.problems] == [
        (f"--save {tmp_path / name}", "is not empty") for name in ("x", "y")
    ]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("cache/mine", "lies in the cache"),
        ("file", "is a file"),
        ("file/below", "cannot be written"),
        ("a\0b", "cannot be"),
        ("nowhere", "leads nowhere"),
    ],
)
def test_a_place_that_cannot_hold_a_model_is_refused(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(ManyProblems, match=message):
        folders(tmp_path / place, [plan()], tmp_path / "cache")


@pytest.mark.parametrize(
    ("lineage", "good"), [([{"key": "k1"}], True), ([{"key": "k2"}], False), ([], False), (3, False)]
)
def test_the_same_command_may_run_again(lineage: Any, good: bool, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / MANIFEST).write_text(json.dumps({"lineage": lineage}))
    if good:
        assert folders(tmp_path / "mine", [plan()], tmp_path / "cache") == [tmp_path / "mine"]
    else:
        with pytest.raises(ManyProblems, match="is not empty"):
            folders(tmp_path / "mine", [plan()], tmp_path / "cache")
