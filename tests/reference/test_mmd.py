"""KID and CMMD against plain loops, of pairs and of two sets apart, and by simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compress.errors import UserError
from evaluation.distances import mmd
from evaluation.features import images
from evaluation.metrics import cmmd, kid
from evaluation.values import Sample
from tests.fakes import SIDE

RNG = np.random.default_rng(29)
Pair = Callable[[np.ndarray, np.ndarray], float]


def sample(values: np.ndarray, reference: np.ndarray | None = None, **protocol: Any) -> Sample:
    return Sample(tuple(map(str, range(len(values)))), values, reference, protocol=protocol)


def directions(n: int, d: int, shift: float = 0.0) -> np.ndarray:
    rows = RNG.normal(size=(n, d)) + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cube(scale: float) -> Pair:
    return lambda a, b: (scale * float(a @ b) + 1) ** 3


def bell(sigma: float) -> Pair:
    return lambda a, b: float(np.exp(-np.square(a - b).sum() / (2 * sigma**2)))


def of_pairs(x: np.ndarray, y: np.ndarray, k: Pair) -> float:
    """Unbiased, over pairs i ≠ j in all three sums."""
    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum(k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j]) for i, j in pairs) / (n * (n - 1))


def of_two(x: np.ndarray, y: np.ndarray, k: Pair) -> float:
    """Unbiased, over i ≠ j inside each set and all pairs across them."""
    inside = (
        sum(k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    )
    return sum(inside) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def spread(left_out: list[float]) -> float:
    n = len(left_out)
    return float((n - 1) / n * np.square(np.array(left_out) - np.mean(left_out)).sum())


KERNELS: list[tuple[Any, Pair]] = [
    (mmd.gaussian(0.8), bell(0.8)),
    (mmd.cubic(np.eye(5)), cube(1)),
    (mmd.cubic(2 * np.eye(5)), cube(0.2)),
]


@pytest.mark.parametrize("rows", [4, 512])
@pytest.mark.parametrize(("kernel", "plain"), KERNELS, ids=["gaussian", "cubic, unit length", "cubic"])
def test_pairs_equal_plain_loops_and_so_does_each_unit_left_out(
    kernel: Any, plain: Pair, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmd, "ROWS", rows)
    x, y = directions(11, 5), directions(11, 5, 0.5)
    found = mmd.linear(x, y, kernel, paired=True)
    assert found.value == pytest.approx(of_pairs(x, y, plain), abs=1e-12)
    left_out = [of_pairs(np.delete(x, i, 0), np.delete(y, i, 0), plain) for i in range(11)]
    assert len(found.shares) == 1
    assert found.shares[0] == pytest.approx(10 * (np.mean(left_out) - left_out), abs=1e-11)
    assert found.spread() == pytest.approx(np.sqrt(spread(left_out)))


@pytest.mark.parametrize("rows", [4, 512])
@pytest.mark.parametrize(("kernel", "plain"), KERNELS, ids=["gaussian", "cubic, unit length", "cubic"])
@pytest.mark.parametrize(("n", "m"), [(9, 14), (12, 5), (8, 8)])
def test_two_sets_of_any_sizes_equal_plain_loops_and_add_their_uncertainty(
    kernel: Any, plain: Pair, n: int, m: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmd, "ROWS", rows)
    x, y = directions(n, 5), directions(m, 5, 0.5)
    found = mmd.linear(x, y, kernel, paired=False)
    assert found.value == pytest.approx(of_two(x, y, plain), abs=1e-12)
    of_x = [of_two(np.delete(x, i, 0), y, plain) for i in range(n)]
    of_y = [of_two(x, np.delete(y, i, 0), plain) for i in range(m)]
    assert found.spread() == pytest.approx(np.sqrt(spread(of_x) + spread(of_y)))
    assert mmd.linear(y, x, kernel, paired=False).value == pytest.approx(found.value, abs=1e-12)


def test_float32_features_are_summed_in_float64() -> None:
    x, y = (directions(40, 6, s).astype(np.float32) for s in (0, 0.4))
    exact = mmd.linear(x.astype(np.float64), y.astype(np.float64), mmd.cubic(x, y), paired=True)
    assert mmd.linear(x, y, mmd.cubic(x, y), paired=True).value == exact.value


def test_equal_sets_of_the_same_items_are_at_exactly_no_distance() -> None:
    x = directions(700, 6)
    for metric in (kid, cmmd):
        found = metric.score(sample(x, x.copy()))
        assert (found.value, found.low, found.high) == (0, 0, 0)
        even = metric.contrast(sample(x, directions(700, 6)), sample(x, directions(700, 6)))
        assert even.low < 0 < even.high


@pytest.mark.parametrize("metric", [kid, cmmd])
def test_an_interval_of_sets_apart_holds_the_truth(metric: Any) -> None:
    """Of one distribution, and so at 0: the interval is two-sided, and the estimate below zero as often as above."""
    draws = [metric.score(sample(directions(60, 6, 0.6), directions(90, 6, 0.6))) for _ in range(200)]
    assert np.mean([e.low <= 0 <= e.high for e in draws]) >= 0.9
    assert 0.35 < np.mean([e.value < 0 for e in draws]) < 0.75
    assert abs(np.mean([e.value for e in draws])) < 4 * np.std([e.value for e in draws]) / np.sqrt(200)


def test_a_contrast_against_one_reference_of_others_is_narrower_than_either_distance() -> None:
    real, base = directions(150, 6), directions(80, 6, 0.8)
    near = base + 0.05 * RNG.normal(size=base.shape)
    sides = [sample(rows / np.linalg.norm(rows, axis=1, keepdims=True), real, paired="no") for rows in (near, base)]
    found, alone = kid.contrast(*sides), kid.score(sides[1])
    assert found.value == pytest.approx(kid.score(sides[0]).value - alone.value)
    assert found.high - found.low < 0.5 * (alone.high - alone.low)


def test_pairs_of_one_item_are_no_evidence_against_each_other() -> None:
    """A candidate that copies its item's real image is not thereby nearer as a set: (i, i) is left out across."""
    x = directions(50, 5)
    near = x + 1e-3 * RNG.normal(size=x.shape)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    paired, apart = (kid.score(sample(near, x, **how)).value for how in ({}, {"paired": "no"}))
    assert abs(paired) < 1e-4
    assert apart < -0.01  # below zero: the pairs look like twins that no pair inside a set has


# ---------------------------------------------------------------- the kernels


def test_kids_kernel_is_reported_from_the_features_length() -> None:
    x, y = directions(9, 6), directions(9, 6, 0.5)
    assert kid.score(sample(x, y)).value == pytest.approx(of_pairs(x, y, cube(1)), abs=1e-12)
    slightly = 1.0005 * x  # float16 weights: still meant to be of unit length
    assert kid.score(sample(slightly, y)).value == pytest.approx(of_pairs(slightly, y, cube(1)), abs=1e-12)
    long = np.sqrt(6) * np.concatenate((x[:8], 1.1 * x[8:]))
    assert kid.score(sample(long, np.sqrt(6) * y)).value == pytest.approx(
        of_pairs(long, np.sqrt(6) * y, cube(1 / 6)), abs=1e-12
    )


def test_one_side_of_other_lengths_gives_both_sides_the_same_kernel() -> None:
    unit, long, real = directions(20, 6), 3 * directions(20, 6), directions(20, 6)
    found = kid.contrast(sample(long, real), sample(unit, real))
    expected = of_pairs(long, real, cube(1 / 6)) - of_pairs(unit, real, cube(1 / 6))
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_cmmd_is_a_thousandfold_and_lacks_the_originals_diagonal() -> None:
    """The original's three plain means keep k(x, x) = 1, which lifts its value by what the diagonals exceed the rest."""
    x, y = directions(12, 6), directions(15, 6, 0.7)
    plain = bell(10.0)
    found = cmmd.score(sample(x, y)).value
    assert found == pytest.approx(1000 * of_two(x, y, plain), abs=1e-9)
    means = [np.mean([[plain(a, b) for b in q] for a in p]) for p, q in ((x, x), (y, y), (x, y))]
    original = 1000 * (means[0] + means[1] - 2 * means[2])
    lifted = sum((1 - (len(s) * m - 1) / (len(s) - 1)) / len(s) for s, m in ((x, means[0]), (y, means[1])))
    assert original - 1000 * lifted == pytest.approx(found, abs=1e-9)
    assert original > found
    narrow = cmmd.score(sample(x, y, sigma=0.5)).value
    assert narrow == pytest.approx(1000 * of_two(x, y, bell(0.5)), abs=1e-9)


def test_a_wide_kernel_keeps_its_digits() -> None:
    """At σ = 1000 kernel values differ from 1 in the seventh digit; the discrepancy is then ‖mean difference‖² / σ²."""
    x, y = directions(200, 4, 1.0), directions(300, 4)
    found = mmd.linear(x, y, mmd.gaussian(1000.0), paired=False).value
    linear = mmd.linear(x, y, lambda a, b: a @ b.T, paired=False).value
    assert found == pytest.approx(linear / 1000**2, rel=1e-4)


# ---------------------------------------------------------------- the metrics


@pytest.mark.parametrize("metric", [kid, cmmd])
def test_mean_and_covariance_alone_are_no_reference(metric: Any) -> None:
    params = metric.measure.params(reference="real.npz")
    with pytest.raises(UserError, match=r"needs the features of each real image, and real\.npz holds") as caught:
        metric.measure.measure(SIDE, params)
    assert "use fid" in caught.value.problems[0].fix


@pytest.mark.parametrize(("metric", "own"), [(kid, {}), (cmmd, {"sigma": 2.5})])
def test_what_decides_the_number_is_in_the_protocol(
    metric: Any, own: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    side, reported = sample(directions(9, 4), directions(9, 4), weights="w"), []
    monkeypatch.setattr(images, "against_real", lambda *given: reported.append(given) or side)
    found = metric.measure.measure(SIDE, metric.measure.params(resize="tf1", **own))
    assert reported == [(SIDE, "zoo://digits-clip", "tf1", "")]
    assert found.protocol == {"weights": "w", "paired": "by item", **own}
    assert np.isfinite(metric.score(found).low)


def test_a_unit_changes_the_numbers_and_not_where_the_interval_leans() -> None:
    rng = np.random.default_rng(3)
    one, other = (rng.normal(size=(40, 4)) for _ in range(2))
    found = mmd.linear(one, other, mmd.gaussian(2.0), paired=True)
    scaled = found.times(1000)
    assert abs(found.skew()) > 0.01
    assert scaled.skew() == pytest.approx(found.skew())
    assert scaled.estimate(40).low == pytest.approx(1000 * found.estimate(40).low)
