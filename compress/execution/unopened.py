"""Why what a stage left was not opened again: as true of every step behind it, so that a run tells it once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from compress.events import Emit, Event

UNOPENED = "not opened again after it was made"


def unopened(why: str) -> str:
    """The warning."""
    return f"{UNOPENED}: {why}"


def warned_once(emit: Emit) -> Emit:
    """Pass events on, but for a warning of this kind that another step gave already in the same words."""
    given: set[str] = set()

    def listen(event: Event) -> None:
        again = event.kind == "warning" and event.message in given
        if event.kind == "warning" and event.message.startswith(UNOPENED):
            given.add(event.message)
        if not again:
            emit(event)

    return listen


def first_warnings(warnings: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The warnings of a run's steps (step, message), each with its step; of this kind and in the same words, only the first."""
    given: set[str] = set()
    for step, message in warnings:
        if message not in given:
            yield f"{step}: {message}"
        if message.startswith(UNOPENED):
            given.add(message)
