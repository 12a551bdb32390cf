"""A tokenizer with more tokens than the model has embeddings for is reported when planning, with both numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import compress
from compress.data.items import Item
from compress.errors import DataError, RecipeError
from compress.model.describing import describe
from compress.opening import open_images, open_language
from compress.tokenizers.tokens import WRITTEN, read_tokens
from compress.tokenizers.vocabulary import OBJECTS, vocabulary_problems
from compress.zoo import zoo_model
from evaluation.observe.lm_eval_harness import Answering
from tests.fakes import language_model
from tests.tiny import tiny_diffusion, tiny_llama

FILES: dict[str, tuple[str, Any]] = {
    "words": ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": 513}}}),
    "pieces": ("tokenizer.json", {"model": {"vocab": [["x", -1.0]] * 514}}),
    "slow": ("vocab.json", {"a": 0, "b": 513}),
}
# Where tokens beside the vocabulary are kept: one for images, for padding, for a conversation's turn.
ADDED: dict[str, tuple[str, Any]] = {
    "added": ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 513, "content": "<x>"}]}),
    "in the vocabulary": (
        "tokenizer.json",
        {"model": {"vocab": {"a": 0, "<x>": 513}}, "added_tokens": [{"id": 513, "content": "<x>"}]},
    ),
    "slow": ("added_tokens.json", {"<x>": 513}),
    "decoder": ("tokenizer_config.json", {"added_tokens_decoder": {"0": {}, "513": {"content": "<x>"}}}),
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


@pytest.mark.parametrize("file", ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("use", ["", "pad_token", "image_token"])
def test_an_added_token_that_most_texts_never_have_needs_no_embedding(
    file: tuple[str, Any], use: str, model: Path
) -> None:
    (model / file[0]).write_text(json.dumps(file[1]))
    (model / "special_tokens_map.json").write_text(json.dumps({use: "<x>"} if use else {}))
    assert list(vocabulary_problems(describe(model))) == []


@pytest.mark.parametrize("file", ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("use", WRITTEN)
def test_what_the_tokenizer_writes_into_texts_by_itself_needs_one(file: tuple[str, Any], use: str, model: Path) -> None:
    (model / file[0]).write_text(json.dumps(file[1]))
    (model / "special_tokens_map.json").write_text(json.dumps({use: {"content": "<x>"}, "pad_token": "<x>"}))
    (found,) = vocabulary_problems(describe(model))
    assert found.message == "the tokenizer writes '<x>', token 513, and the model has embeddings for 512 (vocab_size)"


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
    assert max(read_tokens(made[0]).numbers.values()) > 200, "the files were read"


def test_a_pipelines_encoders_each_read_their_own_tokenizer(tmp_path: Path) -> None:
    folder = tiny_diffusion(tmp_path, xl=True)
    config = folder / "text_encoder_2" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 7}))
    (found,) = vocabulary_problems(describe(folder))
    assert "`text_encoder_2` has embeddings for 7" in found.message
    assert found.place.endswith("tokenizer_2")


def test_padding_is_read_by_a_pipelines_encoder(tmp_path: Path) -> None:
    folder = tiny_diffusion(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder / "tokenizer")
    (found,) = vocabulary_problems(describe(folder))
    assert "the tokenizer writes '<pad>'" in found.message


def test_a_text_with_a_token_that_has_no_embedding_is_named(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image_soft_token>"])
    tokenizer.save_pretrained(folder)
    assert list(vocabulary_problems(describe(folder))) == []
    task = open_language(describe(folder))
    assert len(task.token_logprobs(["a text"], 1)[0]) == 6
    for read in (lambda text: task.token_logprobs(["a text", text], 2), Answering(task).tok_encode):
        with pytest.raises(
            DataError, match=r"the text 'see <image_soft_token>' has the token '<image_soft_token>' \(258\)"
        ):
            read("see <image_soft_token>")


def test_so_is_a_caption(tmp_path: Path) -> None:
    folder = tiny_diffusion(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<concept>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    assert list(vocabulary_problems(describe(folder))) == []
    task = open_images(describe(folder))
    call: dict[str, Any] = {"num_inference_steps": 1, "height": 16, "width": 16}
    task.images([Item("0", "a red cat")], 0, **call)
    for message in ({}, {"negative_prompt": "no <concept>"}):
        with pytest.raises(DataError, match=r"has the token '<concept>' .* and `text_encoder` has embeddings for"):
            task.images([Item("0", "a red cat" if message else "a <concept>")], 0, **call, **message)


def test_a_plan_tells_it(model: Path, tmp_path: Path) -> None:
    (model / "vocab.json").write_text(json.dumps({"a": 513}))
    (tmp_path / "recipe.yaml").write_text("schema: 1\nname: x\nmodel: ./llama\nevaluate: {metrics: [size]}\n")
    with pytest.raises(RecipeError, match="counts to token 513"):
        compress.plan(tmp_path / "recipe.yaml", cache=tmp_path / "cache")


@pytest.mark.parametrize("file", OBJECTS)
@pytest.mark.parametrize("text", ["[]", "{", "", "3"])
def test_a_file_that_is_no_object_is_reported_by_its_name(file: str, text: str, model: Path) -> None:
    (model / file).write_text(text)
    (found,) = vocabulary_problems(describe(model))
    assert file in found.place


def test_a_language_model_without_a_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (found,) = vocabulary_problems(describe(model))
    assert "has no tokenizer" in found.message
    assert "save_pretrained" in found.fix
