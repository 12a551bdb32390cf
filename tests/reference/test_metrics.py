"""Metrics against plain loops. FID, KID and their like have files of their own."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics import fid, kid, perplexity
from evaluation.values import Sample

RNG = np.random.default_rng(7)


def _unit(n: int, d: int, shift: float = 0.0) -> np.ndarray:
    rows = RNG.normal(size=(n, d)) + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _sample(values: np.ndarray, reference: np.ndarray | None = None) -> Sample:
    return Sample(tuple(map(str, range(len(values)))), values, reference)


def test_a_side_against_itself_differs_by_exactly_nothing() -> None:
    side = _sample(_unit(40, 8), _unit(40, 8))
    for metric in (kid, fid):
        found = metric.contrast(side, side)  # type: ignore[attr-defined]
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_perplexity_equals_a_plain_loop_over_tokens() -> None:
    documents = [RNG.uniform(-5, -0.1, size=n) for n in (3, 17, 8, 40)]
    total, count = 0.0, 0
    for document in documents:
        for logprob in document:
            total -= logprob
            count += 1
    rows = np.array([(-d.sum(), len(d), 50) for d in documents])
    found = perplexity.score(_sample(rows))
    assert found.value == pytest.approx(np.exp(total / count), abs=1e-9)
    assert found.low <= found.value <= found.high


def test_perplexity_is_compared_over_the_same_documents() -> None:
    nats = RNG.uniform(10, 200, size=50)
    base = np.stack([nats, np.full(50, 40.0), np.full(50, 150.0)], axis=1)
    worse = base * [1.02, 1, 1]
    found = perplexity.contrast(_sample(worse), _sample(base))
    alone = perplexity.score(_sample(base))
    assert found.low > 0  # though the difference is far below the spread of documents
    assert found.high - found.low < 0.2 * (alone.high - alone.low)
