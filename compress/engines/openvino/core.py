"""The one OpenVINO core of a process, and the stack on which signals are received.

A core's processor plugin gives the thread that opens it a signal stack, and gives back the one before when it goes. Where two go in
another order than they came in, what is given back is no more, and the next signal, such as Ctrl-C, is the end of the process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import openvino


@cache
def core() -> openvino.Core:
    """The core that compiles every graph of this process. It is never let go."""
    return openvino.Core()


class _Stack(ctypes.Structure):
    """`stack_t` of <signal.h>, as Linux has it."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signals_recorded() -> Iterator[None]:
    """Around a library that opens cores of its own: afterwards this thread hears signals where it did before."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
