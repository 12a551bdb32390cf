"""Metrics against closed forms, plain loops and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from evaluation.metrics import fid, kid, perplexity
from evaluation.scores import Sample

RNG = np.random.default_rng(7)


def _unit(n: int, d: int, shift: float = 0.0) -> np.ndarray:
    rows = RNG.normal(size=(n, d)) + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _sample(values: np.ndarray, reference: np.ndarray | None = None) -> Sample:
    return Sample(tuple(map(str, range(len(values)))), values, reference)


def test_fid_equals_scipys_matrix_root() -> None:
    x, y = RNG.normal(size=(200, 12)) @ RNG.normal(size=(12, 12)), RNG.normal(size=(150, 12)) + 0.3
    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(one + other - 2 * np.real(sqrtm(one @ other)))
    assert fid.frechet(x, y) == pytest.approx(expected, abs=1e-6)


def test_fid_of_scaled_and_shifted_gaussians_has_a_closed_form() -> None:
    x = RNG.normal(size=(300, 5))
    spread = np.trace(np.cov(x, rowvar=False))
    assert fid.frechet(3 * x, x) - 4 * (x.mean(0) @ x.mean(0)) == pytest.approx(4 * spread, abs=1e-6)  # (3 − 1)² tr Σ
    assert fid.frechet(x + 2, x) == pytest.approx(4 * 5, abs=1e-6)


def test_fid_of_identical_sets_is_zero_even_when_the_covariance_is_singular() -> None:
    x = RNG.normal(size=(10, 32))
    assert fid.frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_fid_of_fewer_pictures_than_features_says_it_is_not_comparable() -> None:
    assert "not comparable" in fid.score(_sample(_unit(20, 32), _unit(20, 32)), fid.Fid()).note
    assert "not comparable" not in fid.score(_sample(_unit(40, 8), _unit(40, 8)), fid.Fid()).note


def _kid_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased over pairs i ≠ j in all three sums, with the standard kernel on features scaled to length √d."""
    n, d = x.shape
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                a, b, c = (float(p[i] @ q[j]) * d / d + 1 for p, q in ((x, x), (y, y), (x, y)))
                total += a**3 + b**3 - 2 * c**3
    return total / (n * (n - 1))


def test_kid_equals_plain_loops_and_so_does_each_estimate_with_a_unit_left_out() -> None:
    x, y = _unit(9, 6), _unit(9, 6, 0.5)
    value, without = kid.unbiased(x, y)
    assert value == pytest.approx(_kid_by_loops(x, y), abs=1e-12)
    for i in (0, 4, 8):
        keep = np.arange(9) != i
        assert without[i] == pytest.approx(_kid_by_loops(x[keep], y[keep]), abs=1e-12)


def test_kid_of_two_draws_of_one_distribution_is_zero_on_average() -> None:
    values = [kid.unbiased(_unit(40, 8), _unit(40, 8))[0] for _ in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values)) + 1e-3


def test_a_side_against_itself_differs_by_exactly_nothing() -> None:
    side = _sample(_unit(40, 8), _unit(40, 8))
    for metric, params in ((kid, kid.Kid()), (fid, fid.Fid())):
        found = metric.contrast(side, side, params)  # type: ignore[operator]
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_perplexity_equals_a_plain_loop_over_tokens() -> None:
    documents = [RNG.uniform(-5, -0.1, size=n) for n in (3, 17, 8, 40)]
    total, count = 0.0, 0
    for document in documents:
        for logprob in document:
            total -= logprob
            count += 1
    rows = np.array([(-d.sum(), len(d), 50) for d in documents])
    found = perplexity.score(_sample(rows), perplexity.Perplexity())
    assert found.value == pytest.approx(np.exp(total / count), abs=1e-9)
    assert found.low <= found.value <= found.high


def test_perplexity_is_compared_over_the_same_documents() -> None:
    nats = RNG.uniform(10, 200, size=50)
    base = np.stack([nats, np.full(50, 40.0), np.full(50, 150.0)], axis=1)
    worse = base * [1.02, 1, 1]
    found = perplexity.contrast(_sample(worse), _sample(base), perplexity.Perplexity())
    alone = perplexity.score(_sample(base), perplexity.Perplexity())
    assert found.low > 0  # though the difference is far below the spread of documents
    assert found.high - found.low < 0.2 * (alone.high - alone.low)
