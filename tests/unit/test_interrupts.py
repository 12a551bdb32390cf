"""Ctrl-C stops a run also where a library swallows it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from compress.events import Event
from compress.interrupts import heeding

EVENT = Event("note", "here")


@pytest.fixture(autouse=True)
def recorded_here() -> Iterator[None]:
    """Interrupts as at a terminal: a shell starts what runs in the background with them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_was_swallowed_stops_at_the_next_event() -> None:
    recorded: list[Event] = []
    with heeding(recorded.append) as emit:
        emit(EVENT)
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            emit(EVENT)
        emit(EVENT)  # what cleans up may say so
    assert recorded == [EVENT, EVENT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_nobody_swallows_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), heeding(lambda event: None):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_that_a_library_makes_of_an_interrupt_is_the_interrupt() -> None:
    def library() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("something went wrong in here") from None

    with pytest.raises(KeyboardInterrupt), heeding(lambda event: None):
        library()


def test_an_error_without_an_interrupt_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="something"), heeding(lambda event: None):
        raise RuntimeError("something went wrong in here")


def test_who_ignores_interrupts_goes_on_ignoring_them() -> None:
    recorded: list[Event] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what runs in the background
    try:
        with heeding(recorded.append) as emit:
            signal.raise_signal(signal.SIGINT)
            emit(EVENT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert recorded == [EVENT]


IMPATIENT = """
import atexit, signal, sys
from contextlib import suppress
import typer
from compress.exits import exit_code

def interrupt(*_):
    signal.raise_signal(signal.SIGINT)

class Impatient:
    "Standard error, at which somebody presses Ctrl-C whenever something is written."
    def write(self, text):
        with open("stated", "a") as file:
            file.write(text)
        interrupt()
    def flush(self):
        interrupt()

app = typer.Typer()

@app.command()
def work():
    try:
        interrupt()
    finally:
        try:
            interrupt()
        finally:
            interrupt()

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.stderr = Impatient()
LAST
sys.exit(exit_code(app, ["--"]))
"""


@pytest.mark.parametrize("last", ["", "atexit.register(interrupt)"])
def test_however_often_it_is_pressed_a_run_ends_with_130_and_the_line_that_resumes(last: str, tmp_path: Path) -> None:
    script = IMPATIENT.replace("LAST", last)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "resume with: pare" in (tmp_path / "stated").read_text()
