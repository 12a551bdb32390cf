"""Interleaved timing with calls that say how long they took, so that nothing here depends on this machine."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from compress.events import Event, silent
from evaluation.timing import WARM_UP, Run, interleave, time_pair

BLOCKS = 20


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
    assert len(found.baseline.first) == 0  # pictures have no first token


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
    heard: list[Event] = []
    interleave([_call(1, [], "b")], 5, 0, heard.append)
    assert [e.done for e in heard] == [0, 1, 2, 3, 4, 5]
