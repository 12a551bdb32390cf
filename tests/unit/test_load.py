"""What others took of the machine while something was timed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.events import Event
from evaluation.observe import contention, timing
from evaluation.observe.contention import BUSY, Reading, Watch, reported, share_of_others

SECONDS = st.floats(0.5, 1e5)


@given(SECONDS, st.floats(0, 1), st.floats(0, 1), st.integers(1, 128))
def test_what_is_neither_unavailable_nor_ours_is_others(
    wall: float, own: float, others: float, processors: int
) -> None:
    room = wall * processors
    before, after = Reading(7, 11, 3), Reading(7 + wall, 11 + room * (own + others), 3 + room * own)
    found = share_of_others(before, after, processors)
    assert found == pytest.approx(min(1.0, others), abs=1e-6)


def test_of_a_moment_nothing_is_message() -> None:
    assert share_of_others(Reading(0, 0, 0), Reading(0.1, 0.2, 0), 2) is None
    assert reported(None) == reported(BUSY) == reported(0) == ""


def test_a_counter_that_runs_behind_is_no_negative_load() -> None:
    assert share_of_others(Reading(0, 0, 0), Reading(1, 0.5, 0.9), 2) == 0


def test_a_process_beside_is_seen_and_our_own_work_is_none_of_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        with Watch() as watch:
            time.sleep(1)
        neighbour.kill()
    assert watch.share is not None
    assert watch.share * len(contention._allowed()) > 0.5  # of a processor, however many there are


def test_a_busy_machine_is_reported_in_words() -> None:
    assert reported(0.46).startswith("other processes took 46% of the processors meanwhile")


def test_a_speed_under_load_is_never_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "share_of_others", lambda *readings: 0.46)
    recorded: list[Event] = []
    timed = timing.time_pair(lambda: (0.4, 0.0), lambda: (0.1, 0.0), (1, 1), 1, 20, 0, recorded.append)
    assert timed.others == 0.46
    assert timed.unsettled.startswith("other processes took 46% of the processors")
    assert [event.message for event in recorded if event.kind == "warning"] == [timed.unsettled]
