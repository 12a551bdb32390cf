"""Gates by table: inside, outside and straddling, in each direction, and what may not be written."""

from __future__ import annotations

import math

import pytest
import yaml

from compress.catalogue import find_metric, metric_names
from compress.recipe.gates import Gate
from evaluation.values import Estimate
from evaluation.verdict.gates import FEWEST_UNITS, example, judge, problems
from evaluation.verdict.statistics import Z80, Z


def _around(low: float, high: float, n: int = 100) -> Estimate:
    return Estimate((low + high) / 2, low, high, n)


TEN = _around(9, 11)
TABLE = [
    # metric, gate, contrast, verdict
    ("clip_score", Gate(within="10%"), (-0.5, 0.5), "pass"),
    ("clip_score", Gate(within="10%"), (1.2, 1.5), "fail"),  # rising is as suspect as falling
    ("clip_score", Gate(within="10%"), (-1.5, -1.2), "fail"),
    ("clip_score", Gate(within="10%"), (0.5, 1.5), "inconclusive"),
    ("clip_score", Gate(within=0.2), (-0.1, 0.1), "pass"),
    ("kid", Gate(worse_by=0.01), (-5.0, -4.0), "pass"),  # better by far is no offence
    ("kid", Gate(worse_by=0.01), (0.02, 0.03), "fail"),
    ("kid", Gate(worse_by=0.01), (0.0, 0.02), "inconclusive"),
    ("digits_read", Gate(worse_by=0.04), (-0.03, 0.5), "pass"),
    ("digits_read", Gate(worse_by=0.04), (-0.5, -0.1), "fail"),
    ("perplexity", Gate(worse_by="5%"), (0.1, 0.4), "pass"),
    ("perplexity", Gate(worse_by="5%"), (0.6, 0.9), "fail"),
    ("latency", Gate(speedup=2), (2.1, 2.3), "pass"),
    ("latency", Gate(speedup=2), (1.7, 1.9), "fail"),
    ("latency", Gate(speedup=2), (1.9, 2.1), "inconclusive"),
    ("latency", Gate(worse_by="10%"), (0.95, 1.2), "pass"),
    ("latency", Gate(worse_by="10%"), (0.5, 0.6), "fail"),
    ("throughput", Gate(worse_by="10%"), (0.95, 1.2), "pass"),
    ("throughput", Gate(worse_by="10%"), (0.5, 0.6), "fail"),
]


@pytest.mark.parametrize(("metric", "gate", "contrast", "status"), TABLE)
def test_a_verdict_follows_from_interval_and_margin(
    metric: str, gate: Gate, contrast: tuple[float, float], status: str
) -> None:
    verdict = judge(gate, find_metric(metric), TEN, _around(*contrast), None)
    assert verdict.status == status
    assert (verdict.n_needed > 100) == (status == "inconclusive")
    assert bool(verdict.why) == (status != "pass")


@pytest.mark.parametrize("gate", [Gate(within="10%"), Gate(worse_by="10%")])
def test_a_share_of_a_negative_value_decides_nothing(gate: Gate) -> None:
    for contrast in ((-0.1, 0.1), (-9.0, -8.0)):
        verdict = judge(gate, find_metric("clip_score"), _around(-16, -14), _around(*contrast), None)
        assert verdict.status == "inconclusive"
        assert "the baseline's value is -15, and a share of a negative one bounds nothing" in verdict.why
    number = judge(Gate(within=1.5), find_metric("clip_score"), _around(-16, -14), _around(-0.1, 0.1), None)
    assert number.status == "pass"


def test_without_a_gate_there_is_no_verdict() -> None:
    assert judge(None, find_metric("kid"), TEN, _around(0, 1), None).status == "not gated"


def test_a_speedup_inside_the_noise_floor_never_passes() -> None:
    latency, gate = find_metric("latency"), Gate(speedup=1.02)
    assert judge(gate, latency, TEN, _around(1.03, 1.05), _around(0.99, 1.01)).status == "pass"
    assert judge(gate, latency, TEN, _around(1.03, 1.05), _around(0.92, 1.01)).status == "inconclusive"


def test_units_needed_fall_with_the_square_of_the_room() -> None:
    clip = find_metric("clip_score")
    near = judge(Gate(within=1.0), clip, TEN, _around(0.3, 1.1), None)  # half-width 0.4, 0.3 from the edge
    assert near.n_needed == math.ceil(100 * (0.4 / 0.3) ** 2 * ((Z + Z80) / Z) ** 2)


QUALITY = [name for name in metric_names() if find_metric(name).quality]


@pytest.mark.parametrize("name", QUALITY)
@pytest.mark.parametrize("own", [False, True])
def test_too_few_units_of_quality_decide_nothing_either_way(name: str, own: bool) -> None:
    metric, size = find_metric(name), 2.0
    gate = Gate(at_most=size) if own else Gate(within=size)
    held = {near: _around(size * near - 0.1, size * near + 0.1, FEWEST_UNITS - 1) for near in (0, 5)}
    for near, status in ((0, "pass"), (5, "fail")):
        few = judge(gate, metric, TEN, held[near], None, candidate=held[near])
        assert (few.status, few.n_needed) == ("inconclusive", FEWEST_UNITS)
        assert few.why.startswith(f"rests on {FEWEST_UNITS - 1} units")
        enough = _around(held[near].low, held[near].high, FEWEST_UNITS)
        assert judge(gate, metric, TEN, enough, None, candidate=enough).status == status


def test_a_straddling_interval_of_too_few_asks_for_as_many_as_it_takes() -> None:
    few = judge(Gate(within=1.0), find_metric("clip_score"), TEN, _around(0.0, 2.2, 4), None)
    assert few.status == "inconclusive"
    assert few.n_needed > FEWEST_UNITS


def test_blocks_and_files_are_no_units_of_quality() -> None:
    assert judge(Gate(speedup=2), find_metric("latency"), TEN, _around(2.1, 2.3, 5), None).status == "pass"
    assert judge(Gate(speedup=2), find_metric("size"), TEN, _around(3, 3, 1), None).status == "pass"


@pytest.mark.parametrize("name", metric_names())
def test_the_gate_that_is_proposed_can_be_judged(name: str) -> None:
    metric = find_metric(name)
    ((_, bound),) = yaml.safe_load(example(metric).partition("gates: ")[2]).items()
    assert problems(Gate(**bound), metric) == ""


def test_no_interval_decides_nothing() -> None:
    assert judge(Gate(within=1.0), find_metric("kid"), TEN, _around(math.nan, math.nan), None).status == "inconclusive"


@pytest.mark.parametrize(
    ("metric", "gate", "words"),
    [
        ("kid", Gate(), "exactly one"),
        ("kid", Gate(within=1.0, worse_by=1.0), "not within and worse_by"),
        ("kid", Gate(speedup=2), "difference"),
        ("clip_score", Gate(worse_by="1%"), "no worse direction"),
        ("kid", Gate(within="one percent"), "no margin"),
        ("kid", Gate(within="%"), "no margin"),
        ("kid", Gate(worse_by=-0.1), "from 0 up"),
        ("kid", Gate(worse_by="-1%"), "from 0 up"),
        ("kid", Gate(worse_by="nan"), "from 0 up"),
        ("kl", Gate(worse_by="5%"), "of the original itself is 0"),
        ("lpips", Gate(within="5%"), "of the original itself is 0"),
        ("token_agreement", Gate(at_least=90), "lies between 0 and 1, so at least 90 can never hold"),
        ("token_agreement", Gate(at_least=0), "always holds"),
        ("token_agreement", Gate(worse_by=5), "always holds"),
        ("token_agreement", Gate(worse_by="5%"), ""),
        ("perplexity", Gate(at_most=0.5), "is at least 1, so at most 0.5 can never hold"),
        ("ssim", Gate(at_most=1), "always holds"),
        ("kl", Gate(worse_by=0.1), ""),
        ("latency", Gate(speedup=2), ""),
        ("clip_score", Gate(within="2%"), ""),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused_in_words(metric: str, gate: Gate, words: str) -> None:
    found = problems(gate, find_metric(metric))
    assert words in found
    assert bool(found) == bool(words)


def test_a_side_that_was_cold_leaves_every_gate_on_a_speed_open() -> None:
    latency, cold = find_metric("latency"), Estimate(1.0, 0.99, 1.01, 20, "the baseline's first 5 blocks took 2.0×")
    for gate, contrast in (
        (Gate(worse_by="10%"), (1.2, 1.3)),
        (Gate(speedup=3), (1.2, 1.3)),
        (Gate(speedup=1.1), (1.2, 1.3)),
        (Gate(speedup=1.25), (1.2, 1.3)),  # which more blocks of such times would not decide
    ):
        found = judge(gate, latency, TEN, _around(*contrast), cold)
        assert (found.status, found.why, found.n_needed) == ("inconclusive", cold.note, 0)
    unmeasured = Estimate(math.nan, math.nan, math.nan, 0, "no meter")
    assert judge(Gate(speedup=2), latency, TEN, unmeasured, cold).why == "no meter"


def test_nothing_is_smaller_than_nothing() -> None:
    assert "can never hold" in problems(Gate(at_most=0), find_metric("size"))
    assert problems(Gate(at_most=0), find_metric("kid")) == ""
    assert problems(Gate(at_most=5), find_metric("size")) == ""
