"""Nothing is hashed twice: what was recorded of a file holds until somebody writes to it."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import derive, write_manifest
from compress.errors import ContractError
from compress.files import hashing
from compress.files.hashing import digest_file, digest_files, digest_folder, folder_files, identities
from compress.store.cache import Cache
from tests.fakes import CUT, TUNE, language_model, step
from tests.unit.test_execute import WEIGHTS, Trusting, add_one, copying, rewriting, run


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read to be hashed, by its folder and name, from here on."""
    counted: Counter[str] = Counter()

    def counting(path: Path) -> str:
        counted[path.name] += 1
        return digest_file(path)

    for module in ("files.hashing", "store.cache", "execution.contract"):
        monkeypatch.setattr(f"compress.{module}.digest_file", counting)
    return counted


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr("compress.execution.execute.lent_checker", lambda: contextlib.nullcontext(Trusting()))
    return Cache(tmp_path / "cache")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


CUTTING, TUNING = replace(CUT, run=rewriting(add_one)), replace(TUNE, run=copying)


def test_a_stage_that_changes_no_weight_has_none_hashed(cache: Cache, llama: Path, hashed: Counter[str]) -> None:
    run(cache, llama, (CUTTING, step(CUTTING)))
    hashed.clear()
    (_, tuned) = run(cache, llama, (CUTTING, step(CUTTING)), (TUNING, step(TUNING, after="demo.cut")))
    assert not tuned.cached
    assert hashed == {"pare.json": 1}
    assert cache.facts(tuned.key)["files"] == digest_files(tuned.artifact.path)


def test_a_stage_of_the_source_has_each_file_hashed_once(cache: Cache, llama: Path, hashed: Counter[str]) -> None:
    (done,) = run(cache, llama, (CUTTING, step(CUTTING)))
    assert hashed == {
        WEIGHTS: 2,
        "config.json": 2,
        "tokenizer.json": 2,
        "pare.json": 1,
    }  # the source's when planned, and the stage's own
    hashed.clear()
    other = step(CUTTING, ratio=0.75)
    run(cache, llama, (CUTTING, other))
    assert hashed == {WEIGHTS: 1, "config.json": 1, "tokenizer.json": 1, "pare.json": 1}
    assert cache.problem(done.key, thorough=True) == ""


def test_what_a_stage_wrote_through_a_link_is_noticed(cache: Cache, llama: Path) -> None:
    def in_place(artifact: Any, params: Any, context: Any) -> None:
        made = derive(artifact, context.out, link=context.link)
        before = (context.out / WEIGHTS).read_bytes()
        (context.out / WEIGHTS).write_bytes(before[:-1] + b"\x01")  # the input's bytes too
        write_manifest(made)

    tuning = replace(TUNE, run=in_place)
    with pytest.raises(ContractError, match="changed the weights of model"):
        run(cache, llama, (CUTTING, step(CUTTING)), (tuning, step(tuning, after="demo.cut")))


def test_a_file_written_after_it_was_hashed_is_hashed_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    folder = language_model(cache.fresh())
    known = identities(folder, digest_files(folder))
    (folder / "config.json").write_text(json.dumps({"architectures": ["MistralForCausalLM"]}))
    made = cache.put("a" * 64, folder, {}, known)
    assert cache.problem("a" * 64, thorough=True) == ""
    assert made.digest == digest_folder(made.path)


# What is remembered of a folder


def test_the_files_of_a_folder_are_remembered_with_its_digest(
    tmp_path: Path, llama: Path, hashed: Counter[str]
) -> None:
    memory = tmp_path / "memory"
    whole = digest_folder(llama, memory)
    files = folder_files(llama, memory)
    assert hashing.digest_json(files) == whole
    assert hashed == {WEIGHTS: 1, "config.json": 1, "tokenizer.json": 1}
    os.utime(llama / WEIGHTS, ns=(1, 1))
    assert folder_files(llama, memory) == files
    assert hashed[WEIGHTS] == 2


def test_a_note_of_before_that_holds_the_whole_digest_alone_is_still_a_hit(
    tmp_path: Path, llama: Path, hashed: Counter[str]
) -> None:
    memory = tmp_path / "memory"
    whole = digest_folder(llama, memory)
    for note in memory.glob("*.files"):
        note.unlink()
    hashed.clear()
    assert digest_folder(llama, memory) == whole
    assert not hashed
    assert folder_files(llama, memory) == folder_files(llama, memory)
    assert hashed == {WEIGHTS: 1, "config.json": 1, "tokenizer.json": 1}


Spoil = Callable[[Path], Any]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.write_text("{"),
        lambda note: note.write_text(json.dumps({"config.json": "0" * 64})),
        lambda note: note.write_text("[]"),
    ],
)
def test_a_nonfinite_note_of_files_is_made_again(tmp_path: Path, llama: Path, spoil: Spoil) -> None:
    memory = tmp_path / "memory"
    files = folder_files(llama, memory)
    (note,) = memory.glob("*.files")
    spoil(note)
    assert folder_files(llama, memory) == files == json.loads(note.read_text())
