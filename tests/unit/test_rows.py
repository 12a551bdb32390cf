"""Calibration rows are the very tokens that an opened model reads, read one document at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compress.context import Context
from compress.data.items import Data, Item
from compress.errors import DataError, ModelError
from compress.model.describing import describe
from compress.opening import open_language
from compress.opening.full_rows import full_rows
from compress.opening.rows import calibration_rows
from tests.stages import CAPTIONS, DATA
from tests.tiny import tiny_llama


def test_rows_are_what_the_model_reads_and_no_longer_than_asked(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    task = open_language(artifact)
    context = Context(tmp_path, tmp_path, data={"calibration": DATA})
    whole = [task.encode(text) for text in CAPTIONS]
    assert calibration_rows(artifact, 3, 64, context) == whole
    assert calibration_rows(artifact, 3, 5, context) == [row[:5] for row in whole]
    assert len(calibration_rows(artifact, 3, 1000, replace(context, data={"calibration": _texts("a" * 500)}))[0]) == 64


def test_documents_without_two_tokens_are_left_out(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    context = Context(tmp_path, tmp_path, data={"calibration": _texts("", "ab", "")})
    assert len(calibration_rows(artifact, 64, 64, context)) == 1
    with pytest.raises(DataError, match="no calibration document has two tokens"):
        calibration_rows(artifact, 1, 64, context)


def test_no_more_documents_are_read_than_asked_for(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    read: list[int] = []

    def item(index: int) -> Item:
        read.append(index)
        return Item(str(index), "some text")

    context = Context(tmp_path, tmp_path, data={"calibration": Data("endless", "texts", "digest", -1, item)})
    assert len(calibration_rows(artifact, 4, 8, context)) == 4
    assert read == [0, 1, 2, 3]


def test_full_rows_are_the_documents_one_behind_the_other(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    task = open_language(artifact)
    context = Context(tmp_path, tmp_path, data={"calibration": DATA})
    stream = [token for text in CAPTIONS for token in task.encode(text)]
    found = full_rows(artifact, 2, 8, context)
    assert [len(row) for row in found] == [8, 8]
    assert [token for row in found for token in row] == stream[:16]
    assert {len(row) for row in full_rows(artifact, 2, 1000, context)} == {64}  # the model has no more positions


def test_documents_that_do_not_fill_a_row_are_an_error(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    context = Context(tmp_path, tmp_path, data={"calibration": _texts("ab", "cd")})
    with pytest.raises(DataError, match=r"tokens do not fill a row of 32(.|\n)*lower `length`"):
        full_rows(artifact, 1, 32, context)


def test_a_model_without_a_tokenizer_is_reported(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no tokenizer that loads"):
        calibration_rows(artifact, 1, 8, Context(tmp_path, tmp_path, data={"calibration": DATA}))


def _texts(*texts: str) -> Data:
    return Data("texts", "texts", "digest", len(texts), lambda i: Item(str(i), texts[i]))
