"""The simulation behind `reports/calibration.md`: its truths are true, honest gates keep their promises in it, a broken one does not.

Populations are small and of every kind that it knows; rates are held to their bound as in `test_gate_laws.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compress.catalogue import find_metric
from compress.recipe.gates import Gate
from evaluation.comparison import Verdict
from evaluation.comparison.rows import row_of
from evaluation.values import Estimate
from evaluation.verdict import gates
from tests.programs import simulation
from tests.programs.simulation import Case, advised_n, case_of, draw, enough, often, seldom, sides, simulate, together
from tests.property.test_gate_laws import features, sample

RUNS = 300


def case(name: str, gate: Gate, baseline: np.ndarray, candidate: np.ndarray, real: np.ndarray | None = None) -> Case:
    pair = sample(baseline, real), sample(candidate, real)
    return case_of(row_of(find_metric(name), pair, {}, gate), *pair)


def clip(rng: np.random.Generator) -> Case:
    base = rng.normal(30, 3, 90)
    return case("clip_score", Gate(within="1%"), base, base + rng.normal(0, 0.8, 90))


def kid(rng: np.random.Generator) -> Case:
    real, base = features(rng, 90), features(rng, 90, 0.4)
    candidate = base + rng.normal(0, 0.1, base.shape)
    candidate /= np.linalg.norm(candidate, axis=1, keepdims=True)
    return case("kid", Gate(worse_by=0.06), base, candidate, real)


def digits(rng: np.random.Generator) -> Case:
    return case("digits_read", Gate(worse_by=0.02), np.ones(200), np.ones(200))


def perplexity(rng: np.random.Generator) -> Case:
    tokens = rng.integers(80, 200, 90).astype(float)
    base = tokens * rng.normal(2.5, 0.3, 90)
    both = (np.stack([n, tokens, 5 * tokens], axis=1) for n in (base, base + tokens * rng.normal(0, 0.1, 90)))
    return case("perplexity", Gate(worse_by="5%"), *both)


def speed(name: str, rng: np.random.Generator) -> Case:
    one, other = np.exp(rng.normal(0, 0.2, 60) + rng.normal((0, 0), 0.1, (60, 2)).T + [[math.log(3)], [0]])
    return case(name, Gate(speedup=2), *((one, other) if name == "latency" else (1 / one, 1 / other)))


KINDS = {
    "CLIP": clip,
    "KID": kid,
    "digits": digits,
    "perplexity": perplexity,
    "latency": lambda rng: speed("latency", rng),
    "throughput": lambda rng: speed("throughput", rng),
}


@pytest.fixture
def cases() -> dict[str, Case]:
    return {name: make(np.random.default_rng(11)) for name, make in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_the_true_change_is_the_one_that_was_asked_for(cases: dict[str, Case], name: str) -> None:
    one, rng = cases[name], np.random.default_rng(0)
    truths = [one.truth(multiple) for multiple in (0.0, 1.0, 2.0)]
    seen = [one.observe(*sides(one, draw(one, one.n, rng)), truths, rng) for _ in range(RUNS)]
    values = np.array([[found.value for found in run] for run in seen])
    if (
        one.row.compared == "ratio"
    ):  # a median of few blocks is as often above the truth as below, and not right on average
        assert np.all(np.quantile(values, 0.4, axis=0) <= truths)
        assert np.all(truths <= np.quantile(values, 0.6, axis=0))
        return
    error = values.std(axis=0) / math.sqrt(RUNS)
    # A perplexity is bent: its mean lies above the truth by half a variance.
    assert np.all(np.abs(values.mean(axis=0) - truths) <= 4 * error + 0.002 * np.abs(truths))


@pytest.mark.parametrize("name", KINDS)
def test_at_the_margin_a_gate_seldom_passes_and_seldom_fails(cases: dict[str, Case], name: str) -> None:
    one = cases[name]
    for seen in simulate(one, (1.0, -1.0)[: one.sides], one.n, RUNS):
        assert seldom(seen, "pass")
        assert seldom(seen, "fail")


def test_an_unchanged_model_passes_all_quality_gates_at_the_advised_n() -> None:
    twins = [make(np.random.default_rng(11)) for make in (clip, kid)]
    assert often(together(twins, advised_n(twins), 150), "pass")


@pytest.mark.parametrize("name", KINDS)
def test_at_twice_the_margin_a_gate_often_fails(cases: dict[str, Case], name: str) -> None:
    one = cases[name]
    (seen,) = simulate(one, (2.0,), one.n, 200)
    assert 0 < enough(one, one.n, seen) < 10 * one.n


@pytest.mark.parametrize("name", KINDS)
def test_a_gate_that_looks_at_the_estimate_alone_is_caught(
    cases: dict[str, Case], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(gate: Gate, metric: Any, baseline: Estimate, found: Estimate, noise: Estimate | None) -> Verdict:
        return gates.judge(gate, metric, baseline, replace(found, low=found.value, high=found.value), noise)

    monkeypatch.setattr(simulation, "judge", careless)
    one = cases[name]
    (seen,) = simulate(one, (1.0,), one.n, 100)
    assert not seldom(seen, "pass")
    assert not seldom(seen, "fail")
