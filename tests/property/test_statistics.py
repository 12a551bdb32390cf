"""Intervals keep their promise: cover the truth about 95 times in 100, and pair what is paired."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from evaluation.distances import mmd
from evaluation.values import Estimate
from evaluation.verdict import statistics

RUNS = 150


def test_points_of_the_normal_distribution_are_message_once() -> None:
    """Intervals and the advice on how many units narrow them rest on the same."""
    points = (statistics.Z, statistics.Z80)
    assert points == pytest.approx(ndtri([0.975, 0.8]), abs=1e-6)
    folder, spelt = Path(statistics.__file__).parent, {}
    for file in sorted(folder.rglob("*.py")):
        numbers = [n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant)]
        near = [v for v in numbers if isinstance(v, float) and min(abs(v - point) for point in points) < 0.005]
        spelt |= {file.name: near} if near else {}
    assert spelt == {"statistics.py": list(points)}


def test_the_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(1)
    found = [statistics.mean(rng.exponential(size=80)) for _ in range(RUNS)]
    covered = np.mean([e.low <= 1 <= e.high for e in found])
    assert 0.88 <= covered <= 0.99


@pytest.mark.parametrize("blocks", [6, 20, 41])
def test_a_ratio_of_times_is_covered_though_a_block_in_ten_stalls(blocks: int) -> None:
    rng = np.random.default_rng(2)

    def stalling(count: int) -> np.ndarray:
        return rng.lognormal(0, 0.05, count) * np.where(rng.random(count) < 0.1, 1.6, 1.0)

    found = [statistics.median_ratio(2 * stalling(blocks), stalling(blocks)) for _ in range(1000)]
    assert 0.94 <= np.mean([e.low <= 2 <= e.high for e in found]) <= 0.985
    assert all(e.low <= e.value <= e.high for e in found)


def test_order_statistics_leave_out_as_many_as_a_table_says() -> None:
    """Of 20 the 6th and the 15th, of 6 the least and the greatest."""
    for n, low, high in ((3, 1, 3), (5, 1, 5), (6, 1, 6), (20, 6, 15)):
        found = statistics.median_ratio(np.arange(1.0, n + 1), np.ones(n))
        assert (found.low, found.high, found.n) == (low, high, n)


def test_the_quotient_of_two_ratios_covers_their_true_quotient() -> None:
    """Speed-ups of 3 and 2, measured apart in 7 and 20 blocks."""
    rng = np.random.default_rng(4)

    def measured(ratio: float, blocks: int) -> Estimate:
        noise = rng.normal(scale=0.1, size=(2, blocks))
        return statistics.geometric_ratio(ratio * np.exp(noise[0]), np.exp(noise[1]))

    found = [statistics.quotient(measured(3, 7), measured(2, 20)) for _ in range(RUNS)]
    assert 0.9 <= np.mean([e.low <= 1.5 <= e.high for e in found]) <= 0.995


def test_the_quotient_turns_around_and_by_an_exact_number_changes_nothing_else() -> None:
    top, bottom = Estimate(3.0, 2.5, 3.9, 7), Estimate(2.0, 1.8, 2.1, 20)
    one, other = statistics.quotient(top, bottom), statistics.quotient(bottom, top)
    assert (one.value, one.low, one.high) == pytest.approx((1 / other.value, 1 / other.high, 1 / other.low))
    exact = statistics.quotient(top, Estimate(2.0, 2.0, 2.0, 20))
    assert (exact.value, exact.low, exact.high, exact.n) == (
        pytest.approx(1.5),
        pytest.approx(1.25),
        pytest.approx(1.95),
        7,
    )


def test_the_jackknife_covers_a_kid_of_zero() -> None:
    """Two draws of one distribution; the truth is 0."""
    rng = np.random.default_rng(2)

    def draw() -> np.ndarray:
        rows = rng.normal(size=(60, 8)) + 0.4
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    pairs = [(draw(), draw()) for _ in range(RUNS)]
    found = [mmd.linear(x, y, mmd.cubic(x, y), paired=True).estimate(60) for x, y in pairs]
    assert np.mean([e.low <= 0 <= e.high for e in found]) >= 0.9


def test_the_jackknife_of_a_mean_is_the_textbook_interval() -> None:
    values = np.random.default_rng(3).normal(size=50)
    left_out = (values.sum() - values) / 49
    found = statistics.jackknife(float(values.mean()), left_out)
    assert found.high - found.value == pytest.approx(statistics.Z * values.std(ddof=1) / np.sqrt(50))


def test_the_interval_of_a_ratio_turns_over_with_its_sides() -> None:
    rng = np.random.default_rng(4)
    one, other = rng.uniform(1, 2, 40), rng.uniform(3, 4, 40)
    there, back = statistics.geometric_ratio(one, other), statistics.geometric_ratio(other, one)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40), st.floats(-5, 5))
def test_a_constant_shift_has_no_spread(values: list[float], shift: float) -> None:
    base = np.array(values)
    found = statistics.mean_difference(base + shift, base)
    assert found.high - found.low < 1e-9
    assert found.value == pytest.approx(shift, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=40))
def test_the_same_units_give_the_same_interval_around_the_estimate(values: list[float]) -> None:
    one, other = statistics.mean(np.array(values)), statistics.mean(np.array(values))
    assert one == other
    assert one.low - 1e-9 <= one.value <= one.high + 1e-9
