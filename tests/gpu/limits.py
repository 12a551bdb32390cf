"""Time limits of what runs in this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class TookTooLong(Exception):
    """A step did not end in its time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Within it, work is broken off after so many seconds."""

    def broken_off(number: int, frame: object) -> None:
        raise TookTooLong(f"broken off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, broken_off)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
