"""Quantities with units, and the words of a gate for each kind of metric."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.catalogue import find_metric, metric_names
from compress.recipe.gates import Bounds, Gate
from evaluation.values import Estimate
from evaluation.verdict.gates import judge, message, problems
from evaluation.verdict.quantities import UNITS, Amount, amount, units


@pytest.mark.parametrize(
    ("given", "unit", "found"),
    [
        ("1 GB", "MB", Amount(1000)),
        ("1.5gb", "MB", Amount(1500)),
        ("1MiB", "MB", Amount(1.048576)),
        ("200 ms", "s", Amount(0.2)),
        ("2 s", "ms", Amount(2000)),
        ("30 tokens/s", "/s", Amount(30)),
        ("5%", "ms", Amount(0.05, relative=True)),
        ("5 %", "", Amount(0.05, relative=True)),
        (" 1e-3 ", "", Amount(0.001)),
        (3, "MB", Amount(3)),
        ("3", "dB", Amount(3)),
        ("3 dB", "dB", Amount(3)),
        ("1 MB", "ms", None),
        ("1 MB", "", None),
        ("fast", "ms", None),
        ("%", "ms", None),
        ("", "ms", None),
    ],
)
def test_a_quantity_is_reported_in_the_metric_s_unit(given: float | str, unit: str, found: Amount | None) -> None:
    read = amount(given, unit)
    assert (read is None) == (found is None)
    if read and found:
        assert read == pytest.approx(found)


@given(st.sampled_from([(unit, name) for unit in UNITS for name in UNITS[unit]]), st.floats(0, 1e6))
def test_a_number_with_its_unit_is_that_number_in_it(pair: tuple[str, str], number: float) -> None:
    unit, name = pair
    read = amount(f"{number!r} {name}", unit)
    assert read is not None
    assert math.isclose(read.size, number * UNITS[unit][name])
    assert name in units(unit)


@pytest.mark.parametrize("name", metric_names())
def test_a_metric_takes_its_own_words_and_no_others(name: str) -> None:
    metric = find_metric(name)
    middle = 0.5 if metric.ends[1] <= 2 else 2  # a bound that can hold and can be broken
    for word in Bounds.model_fields:
        assert bool(problems(Gate(**{word: middle}), metric)) == (word not in metric.gate_words)
    assert metric.unit in UNITS or metric.unit in ("", "dB", "tokens")


@pytest.mark.parametrize(
    ("name", "gain"),
    [("size", "smaller"), ("peak_memory", "smaller"), ("flops", "smaller"), ("energy", "smaller"), ("kid", "")]
    + [(name, "faster") for name in ("latency", "throughput", "cold_start", "time_to_first_token")],
)
def test_what_a_ratio_above_one_says(name: str, gain: str) -> None:
    assert find_metric(name).gain == gain


@pytest.mark.parametrize(
    ("name", "gate", "status", "words"),
    [
        ("size", Gate(smaller=2), "pass", "at least 2× smaller"),
        ("latency", Gate(faster=4), "fail", "at least 4× faster"),
        ("size", Gate(at_most="10 kB"), "fail", "itself at most 0.01 MB"),
        ("latency", Gate(at_most="0.02 s"), "pass", "itself at most 20 ms"),
        ("throughput", Gate(at_least="600 /min"), "pass", "itself at least 10 /s"),
        ("peak_memory", Gate(worse_by="1 GB"), "pass", "not worse by 1000 MB"),
    ],
)
def test_a_gate_holds_what_its_words_say(name: str, gate: Gate, status: str, words: str) -> None:
    metric, value = find_metric(name), Estimate(12, 11, 13, 100)
    assert problems(gate, metric) == ""
    assert judge(gate, metric, Estimate(36, 36, 36, 100), Estimate(3, 2.9, 3.1, 100), candidate=value).status == status
    assert message(gate, metric) == words


@pytest.mark.parametrize(
    ("name", "gate", "words"),
    [
        ("size", Gate(faster=2), "size does not get faster: use smaller"),
        ("latency", Gate(smaller=2), "latency does not get smaller: use faster"),
        ("kid", Gate(smaller=2), "smaller is a ratio, and kid is compared by its difference: use within or worse_by"),
        ("size", Gate(at_most="200 ms"), "write 1% or a number, or one with its unit (B, kB, MB, GB, TB"),
        ("size", Gate(at_most="5%"), "not about a share of the baseline's"),
        ("size", Gate(at_most="0 MB"), "can never hold"),
        ("latency", Gate(at_most="nan"), "from 0 up"),
    ],
)
def test_a_word_or_a_unit_of_another_kind_is_refused_with_the_right_one(name: str, gate: Gate, words: str) -> None:
    assert words in problems(gate, find_metric(name))
