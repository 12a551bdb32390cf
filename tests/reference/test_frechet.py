"""The Fréchet distance and FID∞ against scipy's matrix root, torchmetrics, closed forms, a delete-one jackknife and simulation."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from compress.errors import UserError
from evaluation.distances import frechet
from evaluation.distances.frechet import Moments
from evaluation.features import images
from evaluation.metrics import fid, fid_infinity
from evaluation.values import Estimate, Sample
from tests.fakes import SIDE

RNG = np.random.default_rng(23)
ROOT = Path(__file__).parents[2]


def sample(values: np.ndarray, reference: np.ndarray | None = None, **more: Any) -> Sample:
    return Sample(tuple(map(str, range(len(values)))), values, reference, **more)


def apart(values: np.ndarray, reference: np.ndarray) -> Sample:
    """Against real images that are not of the same items."""
    return sample(values, reference, protocol={"paired": "no"})


def between(x: np.ndarray, y: np.ndarray) -> float:
    return frechet.distance(Moments.of(x), Moments.of(y)).value


def mixed(n: int, d: int) -> np.ndarray:
    """Correlated features, of spreads that differ a hundredfold."""
    return RNG.normal(size=(n, d)) @ (RNG.normal(size=(d, d)) * np.geomspace(0.1, 10, d)) + RNG.normal(size=d)


def by_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    return float(shift @ shift + np.trace(one + other - 2 * np.real(sqrtm(one @ other))))


# ---------------------------------------------------------------- moments


@pytest.mark.parametrize("cut", [1, 17, 99])
def test_moments_of_two_shards_merge_into_those_of_one_pass(cut: int) -> None:
    x = mixed(100, 6) + 1000  # far from zero, where sums of squares would lose digits
    whole, merged = Moments.of(x), Moments.of(x[:cut]).merge(Moments.of(x[cut:]))
    assert merged.count == whole.count == 100
    assert merged.mean == pytest.approx(whole.mean, rel=1e-10)
    assert np.abs(merged.scatter - whole.scatter).max() < 1e-10 * np.abs(whole.scatter).max()


@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_moments_are_numpys_however_many_rows_a_chunk_has(rows: int) -> None:
    x = mixed(40, 5)
    found = Moments.of(x.astype(np.float32), rows=rows)
    exact = x.astype(np.float32).astype(np.float64)
    assert found.mean == pytest.approx(exact.mean(axis=0), rel=1e-12)
    assert np.abs(found.covariance - np.cov(exact, rowvar=False)).max() < 1e-12 * found.scatter.max()
    chosen = np.array([3, 4, 30])
    assert Moments.of(x, chosen, rows).covariance == pytest.approx(np.cov(x[chosen], rowvar=False))


def test_moments_of_an_unknown_count_do_not_merge() -> None:
    given_ = Moments.given(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="unknown count"):
        given_.merge(Moments.of(mixed(9, 2)))


# ---------------------------------------------------------------- the distance


@pytest.mark.parametrize(("n", "m", "d"), [(60, 90, 3), (200, 150, 12), (400, 300, 64)])
def test_the_distance_is_that_of_scipys_matrix_root_and_of_torchmetrics(n: int, m: int, d: int) -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = mixed(n, d), mixed(m, d)
    assert between(x, y) == pytest.approx(by_matrix_root(x, y), rel=1e-6)
    means = (torch.from_numpy(rows.mean(axis=0)) for rows in (x, y))
    spreads = (torch.from_numpy(np.cov(rows, rowvar=False)) for rows in (x, y))
    (one, other), (sigma, tau) = means, spreads
    assert between(x, y) == pytest.approx(float(_compute_fid(one, sigma, other, tau)), rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_the_distance_of_gaussians_that_share_their_axes_has_a_closed_form(d: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    axes = np.linalg.qr(draw.normal(size=(d, d)))[0]
    one, other, shift = draw.uniform(0.01, 9, d), draw.uniform(0.01, 9, d), draw.normal(size=d)
    found = frechet.distance(
        Moments.given(shift, (axes * one) @ axes.T), Moments.given(np.zeros(d), (axes * other) @ axes.T)
    )
    expected = shift @ shift + np.square(np.sqrt(one) - np.sqrt(other)).sum()
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.note == ""


@pytest.mark.parametrize(("n", "d"), [(100, 8), (10, 32), (2, 5)])
def test_identical_sets_are_at_exactly_no_distance(n: int, d: int) -> None:
    x = mixed(n, d)
    assert between(x, x) == 0
    assert frechet.distance(Moments.of(x, rows=3), Moments.of(x[::-1])).value == 0  # summed in another order
    found = fid.score(sample(x, x.copy()))
    assert found.value == 0
    assert fid.contrast(sample(x, x), sample(x, x)).value == 0


def test_what_is_negative_in_a_covariance_is_clipped_and_reported() -> None:
    """Statistics published in float32, or of too few images, have such eigenvalues."""
    broken = Moments.given(np.zeros(3), np.diag([1.0, 1.0, -0.25]))
    found = frechet.distance(Moments.given(np.zeros(3), np.diag([4.0, 4.0, 0.0])), broken)
    assert found.clipped == pytest.approx(0.25)
    assert "0.25 clipped" in found.note
    side = sample(RNG.normal(size=(50, 3)), moments=(broken.mean, broken.scatter))
    assert "clipped" in fid.score(side).note
    turned = frechet.distance(broken, Moments.given(np.zeros(3), np.eye(3)))
    assert turned.clipped == pytest.approx(2 * np.sqrt(0.25))


def test_features_that_are_not_finite_are_refused() -> None:
    x = mixed(20, 3)
    with pytest.raises(ValueError, match="not finite"):
        between(np.where(x == x[3, 1], np.nan, x), x)


# ---------------------------------------------------------------- influence and intervals


def jackknife_spread(left_out: np.ndarray) -> float:
    n = len(left_out)
    return float(np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum()))


def test_influences_are_what_leaving_a_pair_out_does() -> None:
    n = 250
    x = mixed(n, 4)
    y = 0.7 * x + RNG.normal(size=(n, 4))
    found, _ = frechet.linear(sample(x, y))
    left_out = np.array([between(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(n)])
    assert len(found.shares) == 1
    assert found.spread() == pytest.approx(jackknife_spread(left_out), rel=0.04)
    assert np.corrcoef(found.shares[0], left_out.mean() - left_out)[0, 1] > 0.99


def test_sets_that_are_not_paired_add_their_uncertainty_and_bare_moments_have_none() -> None:
    x, y = mixed(250, 4), mixed(200, 4)
    of_x = np.array([between(np.delete(x, i, 0), y) for i in range(250)])
    of_y = np.array([between(x, np.delete(y, i, 0)) for i in range(200)])
    both, _ = frechet.linear(apart(x, y))
    assert both.spread() == pytest.approx(np.hypot(jackknife_spread(of_x), jackknife_spread(of_y)), rel=0.04)
    known = Moments.of(y)
    alone, _ = frechet.linear(sample(x, moments=(known.mean, known.covariance)))
    assert alone.value == pytest.approx(both.value)
    assert alone.spread() == pytest.approx(jackknife_spread(of_x), rel=0.04)


def test_sets_of_one_size_are_paired_unless_the_protocol_denies_it() -> None:
    x = mixed(300, 4)
    y = x + 0.5 * RNG.normal(size=(300, 4))
    pairs, strangers = (frechet.linear(side)[0] for side in (sample(x, y), apart(x, y)))
    assert pairs.value == strangers.value
    assert pairs.spread() < 0.7 * strangers.spread()


def test_a_covariance_without_an_inverse_still_gives_an_interval() -> None:
    """No more images than features: the maps keep to what the images span."""
    found = fid.score(sample(mixed(20, 32), mixed(20, 32)))
    assert np.isfinite([found.value, found.low, found.high]).all()
    assert "not comparable: 20 images, 32 features" in found.note


def holds(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


def covered(runs: int, n: int, d: int) -> dict[str, float]:
    """How often each interval holds the truth: generated Gaussians of spread 1.3 and 1.1, against real ones of spread 1."""
    truth, difference = d * 0.3**2, d * (0.3**2 - 0.1**2)
    seen: dict[str, list[bool]] = {"limit": [], "difference of limits": [], "difference": []}
    for _ in range(runs):
        real = RNG.normal(size=(n, d))
        worse, better = (sample(RNG.normal(0, s, (n, d)), real) for s in (1.3, 1.1))
        seen["limit"].append(holds(fid_infinity.score(worse), truth))
        seen["difference of limits"].append(holds(fid_infinity.contrast(worse, better), difference))
        seen["difference"].append(holds(fid.contrast(worse, better), difference))
    return {name: float(np.mean(found)) for name, found in seen.items()}


def test_the_interval_of_the_limit_holds_the_truth_19_times_in_20() -> None:
    """FID itself is twice the truth here at n = 128, and half as much again at n = 400 with d = 32."""
    small, wide = covered(200, 128, 4), covered(60, 400, 32)
    assert small["difference"] >= 0.9
    for found in (small, wide):
        assert found["limit"] >= 0.9
        assert found["difference of limits"] >= 0.9


def test_the_interval_of_a_paired_contrast_holds_the_truth_and_is_not_wasteful() -> None:
    """The candidate is the baseline with noise: of the same items, so their difference is known far better than either."""
    d, n, seen, widths = 4, 300, [], []
    truth = d * ((np.sqrt(1.44 + 0.25) - 1) ** 2 - (1.2 - 1) ** 2)
    for _ in range(200):
        real = RNG.normal(size=(n, d))
        base = RNG.normal(0, 1.2, (n, d))
        sides = (sample(rows, real) for rows in (base + RNG.normal(0, 0.5, (n, d)), base))
        candidate, baseline = sides
        found = fid.contrast(candidate, baseline)
        seen.append(holds(found, truth))
        widths.append((found.high - found.low) / (fid.score(candidate).high - fid.score(candidate).low))
    assert 0.9 <= np.mean(seen) <= 0.995
    assert np.mean(widths) < 0.9


# ---------------------------------------------------------------- the limit


@pytest.mark.parametrize(("n", "d"), [(400, 8), (132, 32), (66, 32)])
def test_the_limit_has_far_less_bias_than_the_distance(n: int, d: int) -> None:
    """Even where the smallest part is no larger than it must be."""
    truth, found = d * 0.3**2, []
    for _ in range(60):
        side = sample(RNG.normal(0, 1.3, (n, d)), RNG.normal(size=(n, d)))
        found.append((frechet.linear(side)[0].value - truth, frechet.limit(side).value - truth))
    biased, corrected = np.mean(found, axis=0)
    assert biased > 0
    assert abs(corrected) < 0.25 * biased


def test_the_limit_is_the_intercept_of_a_line_through_the_means_of_parts() -> None:
    x, y = mixed(101, 3), mixed(101, 3)
    order = np.random.default_rng(frechet.SEED).permutation(101)
    means = [np.mean([between(x[part], y[part]) for part in np.array_split(order, k)]) for k in (1, 2, 4)]
    intercept = np.polyfit([1, 2, 4], means, 1)[1]
    assert frechet.limit(sample(x, y)).value == pytest.approx(intercept)


def test_the_limits_interval_is_that_of_its_jackknife() -> None:
    """Leaving a unit out moves each part that holds it, and no other."""
    n, x, y = 160, mixed(160, 3), mixed(160, 3)
    found = frechet.limit(sample(x, y))
    parts = [[np.sort(p) for p in np.array_split(np.random.default_rng(0).permutation(n), k)] for k in (1, 2, 4)]
    weights = frechet._intercept(np.array([1 / n, 2 / n, 4 / n]))

    def without(unit: int) -> float:
        return sum(
            w * np.mean([between(x[p[p != unit]], y[p[p != unit]]) for p in some])
            for w, some in zip(weights, parts, strict=True)
        )

    assert found.spread() == pytest.approx(jackknife_spread(np.array([without(i) for i in range(n)])), rel=0.1)


def test_a_reference_of_other_images_stays_whole_in_the_limit() -> None:
    x, y = RNG.normal(0, 1.3, (200, 4)), RNG.normal(size=(3000, 4))
    known = Moments.of(y)
    by_features = frechet.limit(apart(x, y))
    by_moments = frechet.limit(sample(x, moments=(known.mean, known.covariance)))
    assert by_features.value == pytest.approx(by_moments.value)
    assert [len(s) for s in by_features.shares] == [200, 3000]
    assert by_features.spread() > by_moments.spread() > 0
    assert by_features.value == pytest.approx(4 * 0.3**2, abs=4 * by_features.spread())


def test_the_limit_of_a_side_against_itself_is_even() -> None:
    side = sample(mixed(100, 4), mixed(100, 4))
    found = fid_infinity.contrast(side, side)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert fid_infinity.score(sample(side.values, side.values)).value == 0
    assert fid_infinity.score(side).note == "n = 100, from parts of 100, 50, 25"


def test_few_units_are_cut_into_two_parts_or_refused() -> None:
    assert frechet.sizes(1000, 100) == (1, 2, 4)
    assert frechet.sizes(300, 100) == (1, 2)
    assert frechet.sizes(50, 100) == (1, 2)  # which the metric refuses unless asked otherwise
    found = fid_infinity.score(sample(mixed(3, 2), mixed(3, 2)))
    assert np.isfinite(found.value)
    assert np.isnan(found.low)


# ---------------------------------------------------------------- the metrics' refusals


@pytest.mark.parametrize(("metric", "enough"), [(fid, 9), (fid_infinity, 18)])
@pytest.mark.parametrize("own", [True, False])
def test_too_few_images_are_refused_unless_allowed(
    metric: Any, enough: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_: list[tuple[Any, ...]] = []

    def measured(n: int, **params: Any) -> Sample:
        side = sample(mixed(n, 8), mixed(n if own else 50, 8))
        monkeypatch.setattr(images, "against_real", lambda *reported: given_.append(reported) or side)
        found: Sample = metric.measure.measure(SIDE, metric.measure.params(**params, reference="" if own else "folder"))
        return found

    title = metric.measure.title
    with pytest.raises(
        UserError, match=rf"{title} with 8 features needs {enough} images, and there are {enough - 1}"
    ) as caught:
        measured(enough - 1)
    assert "use kid, which is unbiased" in caught.value.problems[0].fix
    assert "allow_few: true" in caught.value.problems[0].fix
    assert metric.score(measured(enough)).note.startswith(f"n = {enough}")
    assert metric.score(measured(8, allow_few=True)).note.startswith("not comparable: 8 images, 8 features")
    assert given_[0] == (SIDE, "zoo://digits-clip", "pil", "" if own else "folder")
    assert measured(enough).protocol["paired"] == ("by item" if own else "no")


def test_too_few_real_images_are_refused_too() -> None:
    with pytest.raises(UserError, match="needs 9 real images, and there are 8"):
        frechet.refuse_few(apart(mixed(50, 8), mixed(8, 8)), "FID", 9)
    frechet.refuse_few(replace(apart(mixed(50, 8), mixed(9, 8)), protocol={}), "FID", 9)


def test_copies_make_no_more_images_of_few() -> None:
    few, enough = np.tile(mixed(8, 8), (6, 1)), mixed(50, 8)
    with pytest.raises(UserError, match="needs 9 images, and there are 8 different ones among 48"):
        frechet.refuse_few(apart(few, enough), "FID", 9)
    with pytest.raises(UserError, match="needs 9 real images, and there are 8 different ones among 48"):
        frechet.refuse_few(apart(enough, few), "FID", 9)
    assert frechet.message(apart(enough, few)) == "not comparable: 8 images, 8 features"
    assert frechet.message(apart(enough, enough)) == "n = 50"


# ---------------------------------------------------------------- memory

MEASURE = """
import sys, threading, time
import numpy as np, scipy.linalg
from evaluation.metrics import fid
from evaluation.values import Sample

def held():  # of its own, MB; pages of the mapped files are the system's, which drops them at will
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1000

shape, paths = (20_000, 2048), sys.argv[1:]
sets = [np.memmap(path, np.float32, "r", shape=shape) for path in paths]
rest = {"reference": sets[1]} if len(sets) > 1 else {"moments": (np.zeros(2048), np.eye(2048))}
side = Sample(("",) * shape[0], sets[0], **rest)
before, most = held(), 0.0

def watch():
    global most
    while True:
        most = max(most, held())
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
found = fid.score(side)
assert found.low < found.value < found.high and found.n == 20_000
print(most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [1, 2])
def test_twenty_thousand_images_are_never_in_memory_at_once(count: int, tmp_path: Path) -> None:
    """20,000 × 2048 features are 328 MB in float64; two covariances, their roots and vectors are what is held."""
    paths = [tmp_path / str(i) for i in range(count)]
    for scale, path in enumerate(paths, 1):
        rows = np.memmap(path, np.float32, "w+", shape=(20_000, 2048))
        for start in range(0, 20_000, 2000):
            rows[start : start + 2000] = scale * RNG.standard_normal((2000, 2048), dtype=np.float32)
        rows.flush()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300
