"""Images that stay as they were are read once; one that changes is read again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compress.errors import DataError
from compress.files import known_files
from compress.files.hashing import digest_file
from compress.sources.data import open_data
from tests.documents import images


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read for their digest."""
    names: list[str] = []

    def reading(path: Path) -> str:
        names.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(known_files, "digest_file", reading)
    return names


def test_images_are_read_once_until_they_change(tmp_path: Path, read: list[str]) -> None:
    folder, memory = tmp_path / "set", tmp_path / "memory"
    images(folder, 0, 4)
    first = open_data("set", tmp_path, memory=memory)
    assert sorted(read) == ["0.png", "1.png", "2.png", "3.png"]
    read.clear()
    assert open_data("set", tmp_path, memory=memory).digest == first.digest
    assert read == []
    (folder / "2.png").write_bytes((folder / "3.png").read_bytes())
    second = open_data("set", tmp_path, memory=memory)
    assert read == ["2.png"]
    assert second.digest == open_data("set", tmp_path).digest != first.digest


def test_one_of_the_same_size_and_time_is_another_file(tmp_path: Path, read: list[str]) -> None:
    folder, memory = tmp_path / "set", tmp_path / "memory"
    images(folder, 0, 2)
    open_data("set", tmp_path, memory=memory)
    read.clear()
    facts = (folder / "0.png").stat()
    other = tmp_path / "other.png"
    other.write_bytes((folder / "0.png").read_bytes())
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(folder / "0.png")
    open_data("set", tmp_path, memory=memory)
    assert read == ["0.png"]


def test_one_that_is_written_in_place_with_its_old_size_and_time_is_read_again(tmp_path: Path, read: list[str]) -> None:
    folder, memory = tmp_path / "set", tmp_path / "memory"
    images(folder, 0, 2)
    before = open_data("set", tmp_path, memory=memory).digest
    read.clear()
    file = folder / "0.png"
    facts, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert open_data("set", tmp_path, memory=memory).digest != before
    assert read == ["0.png"]


def test_what_was_refused_is_not_remembered(tmp_path: Path) -> None:
    folder, memory = tmp_path / "set", tmp_path / "memory"
    images(folder, 0, 2)
    (folder / "1.png").write_text("no image at all")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1\.png is no image"):
            open_data("set", tmp_path, memory=memory)


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"0.png": 1}', '{"0.png": [["a"], "b"]}', "\udcff"])
def test_a_note_that_does_not_read_costs_time_alone(note: str, tmp_path: Path, read: list[str]) -> None:
    folder, memory = tmp_path / "set", tmp_path / "memory"
    images(folder, 0, 2)
    digest = open_data("set", tmp_path, memory=memory).digest
    read.clear()
    (kept,) = memory.iterdir()
    assert json.loads(kept.read_text()).keys() == {"0.png", "1.png"}
    kept.write_bytes(note.encode(errors="surrogateescape"))
    assert open_data("set", tmp_path, memory=memory).digest == digest
    assert sorted(read) == ["0.png", "1.png"]


def test_a_memory_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    images(tmp_path / "set", 0, 2)
    (tmp_path / "memory").write_text("a file")
    assert open_data("set", tmp_path, memory=tmp_path / "memory").count == 2
