"""A tokenizer with more tokens than the model has embeddings for is told when planning, with both numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.describing import describe
from compress.errors import RecipeError
from compress.vocabulary import OBJECTS, token_ids, vocabulary_problems
from compress.zoo import zoo_model
from tests.fakes import language_model
from tests.tiny import tiny_diffusion, tiny_llama

FILES: dict[str, tuple[str, Any]] = {
    "words": ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": 513}}}),
    "pieces": ("tokenizer.json", {"model": {"vocab": [["x", -1.0]] * 514}}),
    "added": ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 513, "content": "<pad>"}]}),
    "slow": ("vocab.json", {"a": 0, "b": 513}),
    "slow, added": ("added_tokens.json", {"<pad>": 513}),
    "decoder": ("tokenizer_config.json", {"added_tokens_decoder": {"0": {}, "513": {}}}),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = language_model(tmp_path / "llama")
    (folder / "tokenizer.json").write_text("{}")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_token_beyond_the_embeddings(file: tuple[str, Any], model: Path) -> None:
    (model / file[0]).write_text(json.dumps(file[1]))
    (found,) = vocabulary_problems(describe(model))
    assert found.message == "the tokenizer counts to token 513, and the model has embeddings for 512 (vocab_size)"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 514}))
    assert list(vocabulary_problems(describe(model))) == []


@pytest.mark.parametrize(
    "text", ['{"model": 3, "added_tokens": [3, {"id": "x"}]}', '{"model": {"vocab": {"a": "b"}}}', "{}"]
)
def test_a_tokenizer_of_another_make_is_for_loading_to_tell(text: str, model: Path) -> None:
    (model / "tokenizer.json").write_text(text)
    assert list(vocabulary_problems(describe(model))) == []


def test_a_model_may_have_more_embeddings_than_tokens(tmp_path: Path) -> None:
    made = [tiny_llama(tmp_path / "llama"), tiny_diffusion(tmp_path / "sd"), tiny_diffusion(tmp_path / "xl", xl=True)]
    for folder in (*made, zoo_model("docs-llama"), zoo_model("digits-diffusion")):
        assert list(vocabulary_problems(describe(folder))) == []
    assert max(token_ids(made[0])) > 200, "the files were read"


def test_a_pipelines_encoders_each_read_their_own_tokenizer(tmp_path: Path) -> None:
    folder = tiny_diffusion(tmp_path, xl=True)
    config = folder / "text_encoder_2" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 7}))
    (found,) = vocabulary_problems(describe(folder))
    assert "`text_encoder_2` has embeddings for 7" in found.message
    assert found.place.endswith("tokenizer_2")


def test_a_plan_tells_it(model: Path, tmp_path: Path) -> None:
    (model / "vocab.json").write_text(json.dumps({"a": 513}))
    (tmp_path / "recipe.yaml").write_text("schema: 1\nname: x\nmodel: ./llama\nevaluate: {metrics: [size]}\n")
    with pytest.raises(RecipeError, match="counts to token 513"):
        compress.plan(tmp_path / "recipe.yaml", cache=tmp_path / "cache")


@pytest.mark.parametrize("file", OBJECTS)
@pytest.mark.parametrize("text", ["[]", "{", "", "3"])
def test_a_file_that_is_no_object_is_told_by_its_name(file: str, text: str, model: Path) -> None:
    (model / file).write_text(text)
    (found,) = vocabulary_problems(describe(model))
    assert file in found.place


def test_a_language_model_without_a_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (found,) = vocabulary_problems(describe(model))
    assert "has no tokenizer" in found.message
    assert "save_pretrained" in found.fix
