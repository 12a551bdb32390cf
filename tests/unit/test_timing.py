"""Interleaved timing with calls that say how long they took, so that nothing here depends on this machine."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.events import Event, silent
from evaluation.evidence import Evidence, Timings
from evaluation.metrics import time_per_output_token, time_to_first_token
from evaluation.observe.energy import Meter
from evaluation.observe.timing import (
    MORE_WARM_UP,
    MOST_SECONDS,
    WARM_UP,
    Run,
    interleave,
    started_slowly,
    time_pair,
    warm_up,
)

BLOCKS = 20


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside others, which is none of what they are about."""
    monkeypatch.setattr("evaluation.observe.contention.share_of_others", lambda *readings: None)


def _call(seconds: float, log: list[str], name: str, first: float = 0.0) -> Run:
    def run() -> tuple[float, float]:
        log.append(name)
        return seconds, first

    return run


def test_the_ratio_is_that_of_the_calls_and_the_baseline_differs_from_itself_by_nothing() -> None:
    found = time_pair(_call(0.4, [], "b"), _call(0.1, [], "c"), (20, 8), 1, BLOCKS, 0, silent)
    assert np.allclose(found.baseline.seconds / found.candidate.seconds, 4)
    assert np.array_equal(found.again.seconds, found.baseline.seconds)
    assert found.again.work == found.baseline.work
    assert (found.baseline.work, found.candidate.work) == (20, 8)
    assert len(found.baseline.first) == 0  # images have no first token


def test_every_block_holds_each_side_in_an_order_that_changes_but_is_seeded() -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        interleave([_call(1, log, "b"), _call(1, log, "c")], BLOCKS, seed, silent)
        return log[2 * WARM_UP :]

    log = order(0)
    blocks = ["".join(log[i : i + 2]) for i in range(0, len(log), 2)]
    assert len(blocks) == BLOCKS
    assert set(blocks) == {"bc", "cb"}
    assert log == order(0) != order(1)


def test_drift_of_the_machine_cancels_in_the_pairs() -> None:
    clock = iter(np.linspace(1, 3, 1000))  # every call is slower than the one before

    def run() -> tuple[float, float]:
        return float(next(clock)), 0.0

    found = time_pair(run, run, (1, 1), 1, BLOCKS, 0, silent)
    ratios = found.baseline.seconds / found.candidate.seconds
    assert np.exp(np.log(ratios).mean()) == pytest.approx(1, abs=0.005)


def test_times_to_the_first_token_are_kept_apart() -> None:
    found = time_pair(_call(0.4, [], "b", 0.1), _call(0.2, [], "c", 0.05), (64, 64), 1, BLOCKS, 0, silent)
    assert found.baseline.first.tolist() == [0.1] * BLOCKS
    assert found.candidate.first.tolist() == [0.05] * BLOCKS


def test_the_collector_rests_while_timing_and_comes_back_even_after_a_failure() -> None:
    seen: list[bool] = []

    def run() -> tuple[float, float]:
        seen.append(gc.isenabled())
        if len(seen) > 6:
            raise RuntimeError("broken")
        return 1.0, 0.0

    with pytest.raises(RuntimeError):
        interleave([run], BLOCKS, 0, silent)
    assert not any(seen[WARM_UP:])
    assert gc.isenabled()


def test_progress_counts_the_blocks() -> None:
    recorded: list[Event] = []
    interleave([_call(1, [], "b")], 5, 0, recorded.append)
    assert [e.done for e in recorded] == [0, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------- warm-up


def _counted(times: Iterator[float], log: list[float]) -> Run:
    def run() -> tuple[float, float]:
        log.append(next(times))
        return log[-1], 0.0

    return run


def _slow_at_first(calls: int, times: float = 1.62, spread: float = 0.05) -> Run:
    """A side whose first calls take longer, however often it was warmed up."""
    draw, made = np.random.default_rng(0), [0]

    def run() -> tuple[float, float]:
        made[0] += 1
        slower = times if made[0] <= calls else 1.0
        return slower * float(np.exp(spread * draw.standard_normal())), 0.0

    return run


@pytest.mark.parametrize(
    ("times", "calls"),
    [
        ([1.0, 1.05, 9.0], 2),  # settled at once
        ([5.0, 3.0, 2.0, 1.0, 1.02, 9.0], 5),
        ([1.0, 0.5] * 20, WARM_UP + MORE_WARM_UP),  # never settles
    ],
)
def test_warm_up_goes_on_until_two_calls_in_a_row_agree(times: list[float], calls: int) -> None:
    log: list[float] = []
    warm_up([_counted(iter(times), log)])
    assert log == times[:calls]


def test_warm_up_of_all_sides_together_ends_in_time() -> None:
    logs: tuple[list[float], list[float]] = [], []
    warm_up([_counted(iter([9.0, 6.0] * 10), log) for log in logs])
    further = sum(sum(log[WARM_UP:]) for log in logs)
    assert MOST_SECONDS / 2 < further <= MOST_SECONDS


def test_the_baseline_is_warmed_up_once_though_it_is_called_twice_a_block() -> None:
    log: list[str] = []
    time_pair(_call(1, log, "b"), _call(1, log, "c"), (1, 1), 1, BLOCKS, 0, silent)
    assert (log.count("b"), log.count("c")) == (WARM_UP + 2 * BLOCKS, WARM_UP + BLOCKS)


def test_a_baseline_that_was_not_warmed_up_is_reported_and_warned_of() -> None:
    recorded: list[Event] = []
    steady = _slow_at_first(0)
    slow = _slow_at_first(WARM_UP + 2 * 5)  # of the blocks the first five, for it is called twice in each
    found = time_pair(slow, steady, (1, 1), 1, BLOCKS, 0, recorded.append)
    assert found.unsettled.startswith("the baseline's first 5 blocks took 1.6")
    assert found.unsettled.endswith("it was not warmed up, or the machine changed meanwhile")
    assert [e.message for e in recorded if e.kind == "warning"] == [found.unsettled]


def test_so_is_a_candidate_and_a_side_that_is_slow_for_half_the_blocks() -> None:
    found = time_pair(_slow_at_first(0), _slow_at_first(WARM_UP + 10), (1, 1), 1, BLOCKS, 0, silent)
    assert found.unsettled.startswith("the candidate's first 10 blocks took 1.6")


def test_slowness_that_ends_within_the_warm_up_is_nobodys_business() -> None:
    log: list[Event] = []
    sides = _slow_at_first(WARM_UP), _slow_at_first(WARM_UP)
    assert time_pair(*sides, (1, 1), 1, BLOCKS, 0, log.append).unsettled == ""
    assert not [e for e in log if e.kind == "warning"]


@pytest.mark.parametrize("blocks", [12, 16, 20, 30])
def test_noise_alone_is_hardly_ever_called_a_slow_start(blocks: int) -> None:
    draw, alarms, rounds = np.random.default_rng(5), 0, 3000
    for _ in range(rounds):
        base, again, candidate = np.exp(0.15 * draw.standard_normal((3, blocks)))
        alarms += bool(started_slowly("baseline", (base + again) / 2) or started_slowly("candidate", candidate))
    assert alarms / rounds < 0.01


def test_a_few_slow_calls_here_and_there_are_none_either() -> None:
    draw = np.random.default_rng(6)
    spiky = np.exp(0.05 * draw.standard_normal((2000, 20))) * np.where(draw.random((2000, 20)) < 0.15, 2.5, 1)
    assert sum(bool(started_slowly("baseline", row)) for row in spiky) / len(spiky) < 0.01


def test_a_slow_start_of_a_noisy_side_is_nearly_always_found() -> None:
    draw, found = np.random.default_rng(7), 0
    for _ in range(500):
        seconds = np.exp(0.15 * draw.standard_normal(20))
        seconds[:5] *= 1.62
        found += bool(started_slowly("baseline", seconds))
    assert found / 500 > 0.9


def test_too_few_blocks_say_nothing() -> None:
    assert started_slowly("baseline", np.array([9.0, 9.0] + [1.0] * 9)) == ""
    assert started_slowly("baseline", np.array([9.0] * 3 + [1.0] * 9)) != ""


# ---------------------------------------------------------------- energy and tokens


def test_each_call_draws_its_own_joules() -> None:
    drawn = [100.0]

    def run(joules: float) -> Run:
        def call() -> tuple[float, float]:
            drawn[0] += joules
            return 1.0, 0.0

        return call

    meter = Meter("a meter", (lambda: drawn[0],))
    found = time_pair(run(3.0), run(0.5), (1, 1), 1, BLOCKS, 0, silent, meter)
    assert found.baseline.joules.tolist() == found.again.joules.tolist() == [3.0] * BLOCKS
    assert found.candidate.joules.tolist() == [0.5] * BLOCKS


def test_without_a_meter_there_are_no_joules() -> None:
    found = time_pair(_call(1, [], "b"), _call(1, [], "c"), (1, 1), 1, BLOCKS, 0, silent)
    assert len(found.baseline.joules) == len(found.candidate.joules) == 0


def test_time_to_the_first_token_and_from_one_to_the_next() -> None:
    timings = Timings(np.array([0.73, 1.36]), np.array([0.1, 0.1]), 64, 1)
    evidence = Evidence(Artifact(Path(), "text_generation", {}), timings=timings)
    first = time_to_first_token.measure.measure(evidence, time_to_first_token.TimeToFirstToken())
    later = time_per_output_token.measure.measure(evidence, time_per_output_token.TimePerOutputToken())
    assert first.values == pytest.approx([100, 100])
    assert later.values == pytest.approx([10, 20])  # milliseconds, 63 tokens after the first


def test_images_have_no_first_token() -> None:
    timings = Timings(np.ones(2), np.empty(0), 20, 1)
    evidence = Evidence(Artifact(Path(), "text_generation", {}), timings=timings)
    for metric in (time_to_first_token.measure, time_per_output_token.measure):
        with pytest.raises(ValueError, match="no first token"):
            metric.measure(evidence, metric.params())
