"""The 5-gram baseline against a slow loop that follows Chen & Goodman to the letter."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.zoo.ngram import NGramModel

VOCABULARY = 6
DRAW = np.random.default_rng(0)
TOY = [DRAW.choice(VOCABULARY, size=n, p=[0.05, 0.4, 0.2, 0.15, 0.1, 0.1]) for n in (40, 1, 25, 0, 60)]

documents = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), max_size=15).map(lambda ids: np.array(ids, dtype=np.int64)),
    min_size=1,
    max_size=4,
)


class Slow:
    """Interpolated modified Kneser-Ney by dictionaries of tuples: one probability at a time."""

    def __init__(self, texts: list[Any], order: int) -> None:
        windows = []
        for ids in texts:
            padded = (0,) * (order - 1) + tuple(int(i) for i in ids) + (0,)
            windows += [padded[i : i + order] for i in range(len(padded) - order + 1)]
        counts: Counter[tuple[int, ...]] = Counter(windows)
        self.levels = [counts]
        for _ in range(order - 1):
            counts = Counter(gram[1:] for gram in counts)  # how many different tokens stand to the left
            self.levels.insert(0, counts)

    def probability(self, history: tuple[int, ...], word: int) -> float:
        """p(word | history) by the counts of the level of len(history) + 1."""
        counts = self.levels[len(history)]
        below = self.probability(history[1:], word) if history else 1 / VOCABULARY
        following = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == history}
        if not following:
            return below
        freed = sum(self.discount(counts, c) for c in following.values())
        seen = following.get(word, 0)
        kept = seen - self.discount(counts, seen) if seen else 0
        total = sum(following.values())
        return kept / total + freed / total * below

    @staticmethod
    def discount(counts: Counter[tuple[int, ...]], count: int) -> float:
        """D(1) = 1 − 2Y n₂/n₁, D(2) = 2 − 3Y n₃/n₂, D(3+) = 3 − 4Y n₄/n₃; kept within (0, c)."""
        n = [sum(c == k for c in counts.values()) for k in range(5)]
        y = n[1] / max(1, n[1] + 2 * n[2])
        k = min(count, 3)
        return min(max(k - (k + 1) * y * n[k + 1] / max(1, n[k]), 0.05), k - 0.05)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_probability_is_that_of_the_slow_loop(order: int) -> None:
    model, slow = NGramModel.train(TOY, vocabulary=VOCABULARY, beginning=0, order=order), Slow(TOY, order)
    draw = np.random.default_rng(1)
    for _ in range(12):
        history = draw.integers(VOCABULARY, size=order - 1)
        found = model.probabilities(np.tile(history, (VOCABULARY, 1)), np.arange(VOCABULARY))
        expected = [slow.probability(tuple(int(h) for h in history), w) for w in range(VOCABULARY)]
        assert found == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(documents, st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=2))
def test_any_corpus_gives_the_slow_loops_probabilities(texts: list[Any], history: list[int]) -> None:
    model, slow = NGramModel.train(texts, vocabulary=VOCABULARY, beginning=0, order=3), Slow(texts, 3)
    found = model.probabilities(np.tile(history, (VOCABULARY, 1)), np.arange(VOCABULARY))
    assert found == pytest.approx([slow.probability(tuple(history), w) for w in range(VOCABULARY)], abs=1e-12)


def test_a_document_costs_the_sum_of_its_tokens_from_its_beginning_on() -> None:
    model, slow = NGramModel.train(TOY, vocabulary=VOCABULARY, beginning=0, order=3), Slow(TOY, 3)
    text = [3, 1, 1, 4, 2]
    padded = [0, 0, *text]
    expected = -sum(math.log(slow.probability((padded[i], padded[i + 1]), w)) for i, w in enumerate(text))
    assert model.nats(np.array(text)) == pytest.approx(expected)


def test_an_empty_document_costs_nothing() -> None:
    model = NGramModel.train(TOY, vocabulary=VOCABULARY, beginning=0)
    assert model.nats(np.array([], dtype=np.int64)) == 0


@settings(deadline=None, max_examples=20)
@given(documents)
def test_the_order_of_the_documents_does_not_matter(texts: list[Any]) -> None:
    one, other = (NGramModel.train(t, vocabulary=VOCABULARY, beginning=0, order=3) for t in (texts, texts[::-1]))
    assert one.nats(TOY[0]) == other.nats(TOY[0])


def test_documents_are_strangers_to_each_other() -> None:
    """No n-gram runs over the end of one into the next, or the two orders of documents would differ."""
    apart = NGramModel.train([np.array([1, 2]), np.array([3, 4])], vocabulary=VOCABULARY, beginning=0, order=2)
    joined = NGramModel.train([np.array([1, 2, 3, 4])], vocabulary=VOCABULARY, beginning=0, order=2)
    two_three = [m.probabilities(np.array([[2]]), np.array([3]))[0] for m in (apart, joined)]
    assert two_three[0] < two_three[1]


def test_context_pays_on_unseen_text_that_has_some() -> None:
    """A second-order chain: trigrams beat bigrams and unigrams, and more context than the chain has costs little."""
    draw = np.random.default_rng(2)

    def chain(length: int) -> np.ndarray:
        ids = [1, 2]
        for _ in range(length):
            ids.append(int((ids[-1] + 2 * ids[-2]) % 29 + 1) if draw.random() < 0.8 else int(draw.integers(1, 30)))
        return np.array(ids)

    train, unseen = [chain(400) for _ in range(20)], [chain(400) for _ in range(3)]
    nats = {}
    for order in (1, 2, 3, 5):
        model = NGramModel.train(train, vocabulary=31, beginning=0, order=order)
        nats[order] = sum(map(model.nats, unseen)) / sum(map(len, unseen))
    assert nats[3] < 0.6 * nats[1]
    assert nats[3] < nats[2]
    assert nats[5] < 1.25 * nats[3]
    assert nats[1] <= math.log(31) * 1.01
