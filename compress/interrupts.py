"""Ctrl-C while foreign code runs: a library may swallow the exception or make another of it, so it is remembered, and raised again
at the next event or in place of what comes out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from compress.events import Emit, Event


@contextmanager
def heeding(emit: Emit) -> Iterator[Emit]:
    """Within: `emit`, which stops the work where an interrupt was swallowed; an error that one was turned into is an interrupt
    again. Does nothing where interrupts are ignored or handled by somebody else."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield emit
        return
    swallowed = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal swallowed
        swallowed = True
        signal.default_int_handler(number, frame)

    def checked(event: Event) -> None:
        nonlocal swallowed
        if swallowed:
            swallowed = False  # what cleans up on the way out may emit
            raise KeyboardInterrupt
        emit(event)

    signal.signal(signal.SIGINT, hear)
    try:
        yield checked
    except Exception:
        if swallowed:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
