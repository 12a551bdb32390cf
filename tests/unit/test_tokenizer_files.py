"""A tokenizer without its vocabulary opens in silence and reads every word as unknown: it is reported when planning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compress.model.describing import describe
from compress.tokenizers.files import tokenizer_problems
from tests.fakes import language_model
from tests.tiny import TOKENS, tiny_diffusion


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with the folder `vocabulary` beside it, where its tokenizer's slow files are."""
    return tiny_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "sd"))


def reported(folder: Path) -> list[str]:
    return [problem.message for problem in tokenizer_problems(describe(folder))]


BROKEN = {
    "{}": "is no tokenizer: it has no model.vocab and no added_tokens",
    '{"model": {"vocab": {}}, "added_tokens": []}': "is no tokenizer: it has no model.vocab",
    '{"model": {"vocab": [["a", -1.0]]}}': "is no tokenizer: it has no added_tokens",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_tokenizer_that_is_none(text: str, folder: Path, tmp_path: Path) -> None:
    assert reported(folder) == []
    (folder / "tokenizer" / "tokenizer.json").write_text(text)
    assert reported(folder) == [BROKEN[text]]
    model = language_model(tmp_path / "llama")
    assert reported(model) == []
    (model / "tokenizer.json").write_text(text)
    assert reported(model) == [BROKEN[text]]


def test_a_folder_without_a_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert reported(folder) == ["`tokenizer` holds no vocabulary, and CLIPTokenizer would read every word as unknown"]


def test_one_that_reads_bytes_needs_none(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "ByT5Tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert reported(folder) == []


@pytest.mark.parametrize(("gone", "kept"), [("merges.txt", "vocab.json"), ("vocab.json", "merges.txt")])
def test_a_slow_tokenizer_is_two_files(gone: str, kept: str, made: Path, folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(made.parent / "vocabulary" / file, folder / "tokenizer")
    assert reported(folder) == []
    (folder / "tokenizer" / gone).unlink()
    (found,) = reported(folder)
    assert "holds no vocabulary" in found or found == f"has {kept} and no {gone}, and a tokenizer needs both"


def test_an_empty_slow_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    assert reported(folder) == ["is an empty vocabulary"]


@pytest.mark.parametrize(
    ("text", "says"), [("{}", "no model_max_length"), ('{"model_max_length": 99}', "model_max_length 99")]
)
def test_clip_asks_its_tokenizer_how_long_a_text_may_be(text: str, says: str, folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").write_text(text)
    (found,) = tokenizer_problems(describe(folder))
    assert (
        found.message == f"`tokenizer` says {says}, and `text_encoder` reads {TOKENS} tokens (max_position_embeddings)"
    )
    assert found.fix == f'write "model_max_length": {TOKENS} into it'
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": TOKENS}))
    assert reported(folder) == []
