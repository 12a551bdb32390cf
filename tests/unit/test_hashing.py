"""Digests stand for content: every byte and every name counts, and nothing else does."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import ModelError
from compress.files.hashing import CHUNK, digest_file, digest_files, digest_folder, digest_json, list_files

NAMES = st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3})?\.[a-z]", fullmatch=True)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_a_file_has_the_digest_of_its_bytes_however_long_it_is(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    assert digest_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


@given(st.dictionaries(NAMES, st.binary(max_size=20), min_size=1, max_size=4), st.data())
@settings(max_examples=50, deadline=None)
def test_any_changed_byte_and_any_other_name_changes_a_folders_digest(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    folder = write(tmp_path_factory.mktemp("folder"), files)
    before = digest_folder(folder)
    name = data.draw(st.sampled_from(sorted(files)))
    content = files[name]
    if content:
        position = data.draw(st.integers(0, len(content) - 1))
        changed = bytearray(content)
        changed[position] ^= data.draw(st.integers(1, 255))
        (folder / name).write_bytes(changed)
        assert digest_folder(folder) != before
    (folder / name).write_bytes(content + b"\0")
    assert digest_folder(folder) != before
    (folder / name).write_bytes(content)
    assert digest_folder(folder) == before
    (folder / name).rename(folder / f"{name}-renamed")
    assert digest_folder(folder) != before


def test_bytes_that_move_from_one_file_to_the_next_change_the_digest(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a": b"12", "b": b"3"})
    other = write(tmp_path / "other", {"a": b"1", "b": b"23"})
    assert digest_folder(one) != digest_folder(other)


def test_equal_folders_have_equal_digests_wherever_they_lie(tmp_path: Path) -> None:
    files = {"b/c.json": b"{}", "a.txt": b"a", "b/a.txt": b""}
    one = write(tmp_path / "one", files)
    other = write(tmp_path / "two" / "deep", dict(reversed(files.items())))
    assert digest_folder(one) == digest_folder(other) == digest_json(digest_files(one))


def test_files_are_listed_in_one_order_with_relative_names(tmp_path: Path) -> None:
    write(tmp_path, {"b/z": b"", "a": b"", "b/a": b"", ".hidden": b"", ".cache/x": b"", "b/__pycache__/m.pyc": b""})
    (tmp_path / "empty").mkdir()
    assert [f.as_posix() for f in list_files(tmp_path)] == ["a", "b/a", "b/z"]


def test_a_link_counts_as_the_file_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path / "store", {"blob": b"weights"})
    write(tmp_path / "plain", {"model.safetensors": b"weights"})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(tmp_path / "store" / "blob")
    assert digest_folder(tmp_path / "linked") == digest_folder(tmp_path / "plain")


def test_a_linked_file_that_changes_behind_its_link_is_noticed_through_the_memory(tmp_path: Path) -> None:
    write(tmp_path / "store", {"blob": b"weights"})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(tmp_path / "store" / "blob")
    before = digest_folder(tmp_path / "linked", tmp_path / "memory")
    (tmp_path / "store" / "blob").write_bytes(b"others!")
    assert digest_folder(tmp_path / "linked", tmp_path / "memory") != before


def test_two_folders_share_one_memory_without_mixing_up(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", {"a": b"1"}), write(tmp_path / "other", {"a": b"2"})
    memory = tmp_path / "memory"
    first = [digest_folder(one, memory), digest_folder(other, memory)]
    assert [digest_folder(one, memory), digest_folder(other, memory)] == first
    assert first[0] != first[1]


def test_a_file_that_does_not_read_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, {"a": b"1"})
    monkeypatch.setattr("compress.files.hashing.digest_file", fail)
    with pytest.raises(ModelError, match="Permission denied") as caught:
        digest_folder(tmp_path, tmp_path / "memory")
    assert caught.value.problems[0].place == str(tmp_path)
    assert not (tmp_path / "memory").exists()  # a failure is not remembered


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1, "b": 2}, {"b": 2, "a": 1}), ((1, 2), [1, 2]), ({"a": (1,)}, {"a": [1]})],
)
def test_what_json_says_alike_has_one_digest(one: object, other: object) -> None:
    assert digest_json(one) == digest_json(other)


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0, False), ("1", 1), (None, "null"), ([1], 1), ([], {})]
)
def test_what_json_says_differently_has_two(one: object, other: object) -> None:
    assert digest_json(one) != digest_json(other)


def test_digests_are_the_same_in_every_version_of_pare() -> None:
    """Keys of caches that already lie on disks: a change here is a change of `KEY_FORMAT`."""
    value = {"stage": "quantize.nncf", "params": {"ratio": 0.5, "bits": None}, "é": ["x", True]}
    assert digest_json(value) == "dbf38e59e10340227604e0ed9423db5650f1d2305e3b0c133639d565aac72b5a"
