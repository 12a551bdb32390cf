"""Precision and recall against plain loops, on sides that differ in one direction only, and their intervals by recomputing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compress.errors import UserError
from evaluation.distances import neighbours
from evaluation.features import images
from evaluation.metrics import precision, recall
from evaluation.values import Sample
from tests.fakes import SIDE

RNG = np.random.default_rng(31)


def sample(values: np.ndarray, reference: np.ndarray | None = None, **protocol: Any) -> Sample:
    return Sample(tuple(map(str, range(len(values)))), values, reference, protocol=protocol)


def within_by_loops(probes: np.ndarray, region: np.ndarray, k: int) -> np.ndarray:
    """Whether each probe is no further from some unit of the region than that unit's k-th neighbour."""
    radii = [sorted(np.linalg.norm(a - b) for j, b in enumerate(region) if j != i)[k - 1] for i, a in enumerate(region)]
    return np.array(
        [any(np.linalg.norm(p - a) <= r for a, r in zip(region, radii, strict=True)) for p in probes], dtype=float
    )


@pytest.mark.parametrize("rows", [5, 512])
@pytest.mark.parametrize(("n", "m", "k"), [(30, 30, 3), (25, 40, 1), (40, 12, 5)])
def test_both_equal_plain_loops_unit_by_unit(
    n: int, m: int, k: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ROWS", rows)
    x, y = RNG.normal(0, 1.2, (n, 6)), RNG.normal(size=(m, 6))
    side = sample(x, y, k=k)
    inside, reached = within_by_loops(x, y, k), within_by_loops(y, x, k)
    assert precision.units(side).tolist() == inside.tolist()
    assert recall.units(side).ravel().tolist() == reached.tolist()
    assert precision.score(side).value == inside.mean()
    assert recall.score(side).value == reached.mean()
    assert (precision.score(side).n, recall.score(side).n) == (n, m)


@pytest.mark.parametrize("rows", [5, 512])
def test_the_region_of_a_half_is_that_of_its_units_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", rows)
    probes, region = RNG.normal(size=(20, 3)), RNG.normal(size=(37, 3))
    halves = neighbours._halves(np.random.default_rng(0), 37)
    assert (halves[::2] ^ halves[1::2]).all()
    assert set(halves.sum(axis=1)) == {18, 19}
    found = neighbours.covered(probes, region, 3, halves)
    assert found[0].tolist() == within_by_loops(probes, region, 3).astype(bool).tolist()
    for within, half in zip(found[1:], halves, strict=True):
        assert within.tolist() == within_by_loops(probes, region[half], 3).astype(bool).tolist()


# ---------------------------------------------------------------- which is which


def two_kinds(n: int, gap: float = 50.0) -> np.ndarray:
    rows = RNG.normal(size=(n, 4))
    rows[n // 2 :, 0] += gap
    return rows


def test_one_kind_of_two_is_precise_and_recalls_half() -> None:
    """Lopsided on purpose: were the two turned around, this would say ½ and 1."""
    real = two_kinds(400)
    side = sample(0.7 * RNG.normal(size=(400, 4)), real)
    assert precision.score(side).value > 0.97
    assert 0.3 < recall.score(side).value <= 0.5
    back = sample(real, side.values)
    assert precision.score(back).value == recall.score(side).value
    assert recall.score(back).value == precision.score(side).value


def test_a_collapsed_set_is_precise_and_recalls_next_to_nothing() -> None:
    real = RNG.normal(size=(300, 4))
    side = sample(1e-3 * RNG.normal(size=(300, 4)), real)
    assert precision.score(side).value == 1
    assert recall.score(side).value < 0.02
    same = sample(np.repeat(real[:1], 300, axis=0), real)  # one real image over and over
    assert precision.score(same).value == 1
    assert recall.score(same).value == pytest.approx(1 / 300)


def test_noise_around_everything_recalls_and_is_not_precise() -> None:
    side = sample(RNG.normal(0, 5, (300, 6)), RNG.normal(size=(300, 6)))
    assert precision.score(side).value < 0.1
    assert recall.score(side).value > 0.8


@pytest.mark.parametrize("metric", [precision, recall])
def test_equal_sets_have_all_of_each_other(metric: Any) -> None:
    x = RNG.normal(size=(600, 8)).astype(np.float32)
    found = metric.score(sample(x, x.copy()))
    assert found.value == found.high == 1
    assert 0.98 < found.low < 1  # not certain, though no image lies outside


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(("m", "how"), [(64, "by item"), (64, "no"), (81, "no")])
def test_the_interval_is_that_of_computing_all_again_on_halves(m: int, how: str) -> None:
    x, y = RNG.normal(0, 1.3, (64, 2)), RNG.normal(size=(m, 2))
    draw = np.random.default_rng(neighbours.SEED)
    of_y = neighbours._halves(draw, m)
    of_x = of_y if how == "by item" else neighbours._halves(draw, 64)
    again = [within_by_loops(x[i], y[j], 3).mean() for i, j in zip(of_x, of_y, strict=True)]
    found, _ = neighbours.precision(sample(x, y, paired=how))
    assert 0 < found.value < 1
    assert found.spread() == pytest.approx(np.std(again))
    seen = precision.score(sample(x, y, paired=how))
    assert seen.value - seen.low == pytest.approx(1.96 * np.hypot(np.std(again), np.sqrt(2) / 66), rel=1e-3)


@pytest.mark.parametrize("metric", [precision, recall])
@pytest.mark.parametrize("how", ["by item", "no"])
def test_the_intervals_are_about_as_wide_as_the_estimates_scatter(metric: Any, how: str) -> None:
    alone, against = [], []
    for _ in range(60):
        real, base = RNG.normal(size=(192, 8)), RNG.normal(size=(192, 8))
        other = base + 0.3 * RNG.normal(size=base.shape)
        sides = [sample(rows, real, paired=how) for rows in (other, base)]
        alone.append(metric.score(sides[0]))
        against.append(metric.contrast(*sides))
    for found in (alone, against):
        scatter = 2 * 1.96 * np.std([e.value for e in found])
        assert 0.8 * scatter < np.mean([e.high - e.low for e in found]) < 1.8 * scatter


@pytest.mark.parametrize("metric", [precision, recall])
def test_a_contrast_of_nothing_is_even_and_not_certain(metric: Any) -> None:
    side = sample(RNG.normal(0, 1.2, (128, 3)), RNG.normal(size=(128, 3)))
    found = metric.contrast(side, side)
    assert found.value == 0
    assert found.high == -found.low == pytest.approx(1.96 * np.sqrt(2) / 130, rel=1e-3)


@pytest.mark.parametrize(("how", "m"), [("by item", 256), ("no", 400)])
def test_a_contrast_tells_a_collapse_by_recall_and_noise_by_precision(how: str, m: int) -> None:
    real, good = RNG.normal(size=(m, 3)), RNG.normal(size=(256, 3))
    base, collapsed, noisy = (sample(rows, real, paired=how) for rows in (good, 0.3 * good, 4 * good))
    assert recall.contrast(collapsed, base).high < -0.3
    assert precision.contrast(collapsed, base).value >= 0
    assert precision.contrast(noisy, base).high < -0.3


# ---------------------------------------------------------------- the metrics


@pytest.mark.parametrize("metric", [precision, recall])
def test_higher_is_better_and_k_travels_with_the_sample(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    side = sample(RNG.normal(size=(20, 3)), RNG.normal(size=(30, 3)))
    monkeypatch.setattr(images, "against_real", lambda *given: side)
    found = metric.measure.measure(SIDE, metric.measure.params(k=5, reference="folder"))
    assert found.protocol == {"paired": "no", "k": 5}
    assert metric.measure.better == "higher"
    assert metric.score(found).value >= metric.score(sample(side.values, side.reference, k=1)).value
    with pytest.raises(UserError, match="looks at 20 neighbours of each image, and there are 20"):
        metric.measure.measure(SIDE, metric.measure.params(k=20))
    with pytest.raises(UserError, match="mean and covariance"):
        metric.measure.measure(SIDE, metric.measure.params(reference="real.npz"))


def test_copies_are_no_neighbours_enough() -> None:
    few = np.tile(RNG.normal(size=(3, 4)), (5, 1))
    with pytest.raises(UserError, match="and there are 3 images that differ"):
        neighbours.refuse_few(sample(few, RNG.normal(size=(30, 4))), "precision")


def test_real_images_of_other_items_have_no_mark_for_each_item() -> None:
    """So that the report does not name prompts by them."""
    x, y = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 3))
    assert recall.units(sample(x, y)).shape == (20,)
    assert recall.units(sample(x, y, paired="no")).shape == (20, 1)
    assert precision.units(sample(x, y, paired="no")).shape == (20,)


@pytest.mark.parametrize("metric", [precision, recall])
def test_a_handful_of_images_gives_a_number_without_an_interval(metric: Any) -> None:
    found = metric.score(sample(RNG.normal(size=(7, 2)), RNG.normal(size=(7, 2))))
    assert np.isfinite(found.value)
    assert np.isnan(found.low)
    assert np.isnan(found.high)
