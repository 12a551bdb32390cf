"""The text set, the 5-gram baseline, and the language model that was trained on the one and has to beat the other."""

from __future__ import annotations

import itertools
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError
from compress.zoo import docstrings, zoo_model
from compress.zoo.docstrings import Document
from compress.zoo.ngram import NGramModel

WORDS = (
    "estimator",
    "fits",
    "every",
    "sample",
    "of",
    "a",
    "matrix",
    "with",
    "weights",
    "summing",
    "to",
    "one",
    "unless",
)


def document(name: str, seed: int, words: int = 60) -> Document:
    draw = np.random.default_rng(seed)
    return Document(name, " ".join(f"{draw.choice(WORDS)}{draw.integers(30)}" for _ in range(words)))


def versions_of(original: Document, count: int) -> list[Document]:
    """The same text with another beginning and end, like the docstrings of `fit` and `fit_transform`."""
    return [Document(f"{original.id}_{i}", f"Version number {i}. {original.text} See part {i}.") for i in range(count)]


# ---------------------------------------------------------------- prose


SOURCE = '''
"""Module words."""
class Model:
    """A model.

    It predicts the mean of the values
    that it has seen before.

    Parameters
    ----------
    rate : float
        How fast the model learns from
        the values that it is given.

    Examples
    --------
    >>> Model().fit([1])
    1.0

    ======  ======
    column  column
    ======  ======

    References
    ----------
    .. [1] A. Author, "A paper about predicting the mean of all the values".
    """
    def fit(self):
        """Fit the model to the values that it is given."""
add_newdoc("place", "name", """The words of a compiled function.""")
'''


def test_source_docstrings_are_found_with_their_qualified_names() -> None:
    found = dict(docstrings.source_docstrings(SOURCE, "package.module"))
    assert list(found) == [
        "package.module",
        "package.module.Model",
        "package.module.Model.fit",
        "package.module.place.name",
    ]
    assert found["package.module.place.name"] == "The words of a compiled function."


def test_prose_keeps_english_and_drops_the_rest() -> None:
    text = docstrings.prose(dict(docstrings.source_docstrings(SOURCE, "m"))["m.Model"])
    assert text == (
        "It predicts the mean of the values that it has seen before.\n\n"
        "rate : float\nHow fast the model learns from the values that it is given."
    )


def test_prose_drops_a_directive_with_its_indented_lines() -> None:
    text = docstrings.prose("Words that stand before it.\n\n.. math::\n\n    a = b c d e\n\nWords that stand after it.")
    assert text == "Words that stand before it.\n\nWords that stand after it."


# ---------------------------------------------------------------- splits


def test_versions_of_one_docstring_share_a_cluster_and_others_do_not() -> None:
    first, second = document("a", 1), document("b", 2)
    labels = docstrings.clusters([first, *versions_of(first, 3), second])
    assert len(set(labels[:4])) == 1
    assert labels[4] != labels[0]


def test_clusters_are_closed_under_chains() -> None:
    a, b, c = (document(name, seed, 30) for name, seed in (("a", 1), ("b", 2), ("c", 3)))
    left = Document("left", f"{a.text} {b.text}")
    right = Document("right", f"{b.text} {c.text}")
    assert docstrings.clusters([left, right, a])[0] == docstrings.clusters([left, right, a])[1]
    assert len(set(docstrings.clusters([a, right, left]))) == 1  # a and right meet only through left
    assert len(set(docstrings.clusters([a, right]))) == 2


def test_training_loses_every_relative_of_a_held_out_document() -> None:
    families = [[d, *versions_of(d, 2)] for d in (document(f"d{i}", i) for i in range(12))]
    everything = [d for family in families for d in family]
    chosen = docstrings.choose_held_out(everything, {"validation": 2, "test": 3})
    kept_out = [*chosen["validation"], *chosen["test"]]
    train = docstrings.without_relatives(everything, kept_out)
    stems = {d.id.split("_")[0] for d in kept_out}
    assert len(stems) == 5
    assert {d.id for d in train} == {d.id for d in everything if d.id.split("_")[0] not in stems}
    assert len(train) == 21


def test_the_choice_ignores_the_order_of_the_documents() -> None:
    everything = [document(f"d{i}", i) for i in range(20)]
    counts = {"validation": 3, "test": 4}
    assert docstrings.choose_held_out(everything, counts) == docstrings.choose_held_out(everything[::-1], counts)


def test_boilerplate_with_many_versions_is_never_held_out() -> None:
    crowd = versions_of(document("crowd", 0), docstrings.LARGEST_HELD_OUT_CLUSTER + 1)
    chosen = docstrings.choose_held_out([*crowd, document("alone", 1)], {"test": 1})
    assert [d.id for d in chosen["test"]] == ["alone"]


def test_the_shipped_splits_have_their_counts_and_unique_names() -> None:
    validation, test = docstrings.held_out("validation"), docstrings.held_out("test")
    assert (len(validation), len(test)) == (100, 260)
    assert len({d.id for d in validation + test}) == 360
    assert min(len(d.text) for d in validation + test) >= docstrings.MINIMUM_CHARACTERS
    assert sum(p.stat().st_size for p in docstrings.DATA.glob("docstrings-*.jsonl")) < 800_000


@pytest.mark.slow
def test_no_shipped_document_has_a_relative_in_another_split() -> None:
    validation, test, train = (
        docstrings.held_out("validation"),
        docstrings.held_out("test"),
        docstrings.train_documents(),
    )
    labels = docstrings.clusters([*validation, *test, *train])
    sides = [set(labels[:100]), set(labels[100:360]), set(labels[360:])]
    assert len(labels) > 5000
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(sides, 2))


def test_a_package_read_twice_gives_the_same_documents() -> None:
    first, second = (docstrings.installed_documents(("numpy",)) for _ in range(2))
    assert first == second
    assert len(first) > 500
    assert [d.id for d in first] == sorted(d.id for d in first)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="no such split"):
        docstrings.held_out("dev")  # type: ignore[arg-type]


# ---------------------------------------------------------------- 5-grams


ids = st.lists(st.integers(0, 6), max_size=25).map(lambda found: np.array(found, dtype=np.int64))


@settings(max_examples=40, deadline=None)
@given(documents=st.lists(ids, min_size=1, max_size=6), history=st.lists(st.integers(0, 6), min_size=4, max_size=4))
def test_probabilities_sum_to_one_and_none_is_zero(documents: list[Any], history: list[int]) -> None:
    model = NGramModel.train(documents, vocabulary=7, beginning=0)
    found = model.probabilities(np.tile(np.array(history), (7, 1)), np.arange(7))
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0


def test_a_bigram_model_is_the_closed_form() -> None:
    """One document 1 2 1 2 1 3: c(1 2) = 2, c(1 3) = 1, the discounts from the counts of counts of all six bigrams."""
    model = NGramModel.train([np.array([1, 2, 1, 2, 1, 3])], vocabulary=4, beginning=0, order=2)
    # Bigrams 01 12 21 12 21 13 30 once each but for 12 and 21: n1 = 3, n2 = 2, so Y = 3/7, D1 = 1 - 2 Y 2/3, D2 = 1.95.
    d1, d2 = 1 - 2 * (3 / 7) * (2 / 3), 1.95
    unigram_counts = np.array([1, 2, 1, 1])  # different left neighbours: {3}, {0, 2}, {1}, {1}
    e1, e2 = 1 - 2 * (3 / 5) * (1 / 3), 1.95  # n1 = 3, n2 = 1
    discounts = np.where(unigram_counts == 1, e1, e2)
    unigram = (unigram_counts - discounts) / 5 + discounts.sum() / 5 / 4
    expected = np.array([0, 0, 2 - d2, 1 - d1]) / 3 + (d1 + d2) / 3 * unigram
    assert model.probabilities(np.full((4, 1), 1), np.arange(4)) == pytest.approx(expected)


def test_five_grams_beat_uniform_on_unseen_text_of_the_same_kind() -> None:
    draw = np.random.default_rng(0)
    walks = [np.cumsum(draw.integers(1, 3, size=200)) % 50 for _ in range(21)]
    model = NGramModel.train(walks[:20], vocabulary=50, beginning=0)
    assert model.nats(walks[20]) < 0.4 * 200 * math.log(50)


def test_ids_that_do_not_fit_into_a_key_are_refused() -> None:
    with pytest.raises(ValueError, match="63 bits"):
        NGramModel.train([np.array([1])], vocabulary=50_000, beginning=0)


# ---------------------------------------------------------------- docs-llama


@cache
def shipped() -> tuple[Any, Any]:
    from compress.zoo.training.docs_llama import load_shipped

    return load_shipped()


@pytest.fixture(scope="module")
def reported() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((zoo_model("docs-llama") / "training.json").read_text())
    return found


@pytest.mark.slow
def test_the_shipped_model_beats_five_grams_on_the_same_documents() -> None:
    from compress.zoo.training import docs_llama

    model, tokenizer = shipped()
    documents = docstrings.held_out("test")[::5]
    train = docs_llama.encode_all(tokenizer, docstrings.train_documents())
    five_gram = NGramModel.train(train, vocabulary=docs_llama.VOCABULARY, beginning=0)
    baseline = np.array([five_gram.nats(ids) for ids in docs_llama.encode_all(tokenizer, documents)])
    bits = docs_llama.bits_per_byte(docs_llama.document_nats(model, tokenizer, documents), documents)
    assert len(documents) == 52
    assert bits < 1.24 < docs_llama.bits_per_byte(baseline, documents)


def test_training_json_tells_a_gain_that_chance_does_not_explain(reported: dict[str, Any]) -> None:
    test = reported["bits_per_byte"]["test"]
    assert test["docs_llama"] < test["five_gram"]
    assert 0 < test["gain_low"] < test["five_gram"] - test["docs_llama"] < test["gain_high"]
    assert reported["corpus"]["documents"]["test"] == 260
    assert len(reported["curve"]) > 3


def test_the_folder_opens_with_stock_transformers_and_the_tokenizer_gives_text_back() -> None:
    from transformers import AutoTokenizer

    folder = zoo_model("docs-llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in (docstrings.held_out("test")[0].text, "  two  spaces\n\tnaïve façade ✓ 数"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert max(ids) < 4096
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert (folder / "model.safetensors").stat().st_size < 15_000_000


def test_scoring_in_windows_scores_each_token_once() -> None:
    """A model that knows nothing gives log(vocabulary) for each token, however long the document is."""
    import torch

    from compress.zoo.training import docs_llama

    _, tokenizer = shipped()
    blank = docs_llama.build_model()
    torch.nn.init.zeros_(blank.model.embed_tokens.weight)
    text = " ".join(d.text for d in docstrings.held_out("validation")[:8])
    documents = [Document("short", text[:700]), Document("long", text[:6000])]
    counts = [len(found) for found in docs_llama.encode_all(tokenizer, documents)]
    assert counts[1] > 2 * docs_llama.CONTEXT
    nats = docs_llama.document_nats(blank, tokenizer, documents)
    assert nats == pytest.approx([n * math.log(docs_llama.VOCABULARY) for n in counts], rel=1e-5)


def test_windows_of_an_epoch_repeat_and_differ_between_epochs() -> None:
    from compress.zoo.training import docs_llama

    documents = [np.arange(1, 300), np.arange(300, 1200), np.arange(1200, 2500)]
    first = docs_llama.windows_of_epoch(documents, 0)
    assert (first == docs_llama.windows_of_epoch(documents, 0)).all()
    assert first.shape[1] == docs_llama.CONTEXT + 1
    assert not np.array_equal(first, docs_llama.windows_of_epoch(documents, 1))


def test_the_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    from compress.zoo.training import docs_llama

    rates = [docs_llama.learning_rate(step, step / 1000) for step in range(1001)]
    assert rates[0] < docs_llama.PEAK_RATE / 50
    assert max(rates) <= docs_llama.PEAK_RATE
    assert rates[docs_llama.WARM_UP_STEPS :] == sorted(rates[docs_llama.WARM_UP_STEPS :], reverse=True)
    assert rates[-1] == pytest.approx(docs_llama.PEAK_RATE * docs_llama.FINAL_RATE_SHARE)


def tiny_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=4096, tie_word_embeddings=True, **sizes))


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from compress.zoo.training import docs_llama

    texts = tuple(document(f"d{i}", i) for i in range(8))
    monkeypatch.setattr(docstrings, "train_documents", lambda: texts)
    monkeypatch.setattr(docstrings, "held_out", lambda split: texts[:1])
    monkeypatch.setattr(docs_llama, "build_model", tiny_llama)
    monkeypatch.setattr(docs_llama, "CONTEXT", 32)
    monkeypatch.setattr(docs_llama, "SECONDS_BETWEEN_EVALUATIONS", 0.0)

    monkeypatch.setattr(docs_llama, "WORK", tmp_path / "whole")
    whole = docs_llama.Run(minutes=1, steps=6)
    whole.go()

    monkeypatch.setattr(docs_llama, "WORK", tmp_path / "interrupted")
    interrupted = docs_llama.Run(minutes=1, steps=6)
    monkeypatch.setattr(
        interrupted, "share_done", lambda: interrupted.progress.step / 6 if interrupted.progress.step < 3 else 1.0
    )
    interrupted.go()
    resumed = docs_llama.Run(minutes=1, steps=6)
    assert resumed.progress.step == 3
    resumed.go()

    assert whole.progress.step == resumed.progress.step == 6
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(whole.model.parameters()), next(tiny_llama().parameters()))
