"""What other processes took of the machine while something was timed.

Both sides of an interleaved timing suffer from a neighbour, but not in the same ratio, so the baseline against itself shows nothing
of it: what others took has to be counted. Processor time is counted, of the processors that this process may use; time that the
host of a virtual machine took away (steal) is others' too. What they take of the memory's bandwidth beside that is not seen.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import TracebackType

BUSY = 0.1  # share of the machine: a fifth of a processor where there are two
SHORTEST = 0.5  # seconds: processor time is counted in hundredths, and of less than this they say too little
RESTING = ("idle", "iowait", "guest", "guest_nice")  # a guest's time stands in the user's already


@dataclass(frozen=True)
class Reading:
    """Clock, processor seconds of the whole machine that were at work, and those of this process."""

    wall: float
    busy: float
    own: float


def read() -> Reading:
    """The counters now."""
    import psutil

    allowed = _allowed()
    machine = [one for number, one in enumerate(psutil.cpu_times(percpu=True)) if number in allowed]
    busy = sum(seconds for one in machine for name, seconds in one._asdict().items() if name not in RESTING)
    return Reading(time.perf_counter(), busy, time.process_time())


def share_of_others(before: Reading, after: Reading, processors: int) -> float | None:
    """What others took of the machine between two readings, from 0 to 1; None where the time is too short to tell."""
    wall = after.wall - before.wall
    if wall < SHORTEST:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(1.0, max(0.0, others / (wall * processors)))


class Watch:
    """Around what is timed: afterwards `share` says what others took of the machine meanwhile, None where that is not known."""

    share: float | None = None

    def __enter__(self) -> Watch:
        self._before = read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.share = share_of_others(self._before, read(), len(_allowed()))


def reported(share: float | None) -> str:
    """In words, that the machine was busy with something else; "" where it was not, or nobody knows."""
    if share is None or share <= BUSY:
        return ""
    return f"other processes took {share:.0%} of the processors meanwhile: measure again when nothing else runs"


def _allowed() -> frozenset[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
