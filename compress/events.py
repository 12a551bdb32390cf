"""What happens during a run, as values. Fire and forget: nothing in pare waits for an event or reads one back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")
# Facts of a warning that comes again at each of many measurements: which it is, and how bad it was this time.
RECURS, FIGURE = "recurs", "figure"


@dataclass(frozen=True)
class Event:
    """`kind` is started | progress | finished | cached | warning | note | loss; `what` names the node or activity.

    `facts` are numbers, texts, and lists of them: what JSON can say.
    """

    kind: str
    what: str
    message: str = ""
    done: int = 0
    total: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """The default listener: hears everything, says nothing."""


def named(emit: Emit, name: str) -> Emit:
    """`emit`, whose listener hears the name of the run in front of what happens in it."""
    return lambda event: emit(replace(event, what=f"{name}: {event.what}" if event.what else name))


def track(items: Iterable[T], emit: Emit, what: str, total: int) -> Iterator[T]:
    """Yield `items`, emitting one progress event after each, so that listeners can tell the time left."""
    emit(Event("progress", what, done=0, total=total))
    for done, item in enumerate(items, 1):
        yield item
        emit(Event("progress", what, done=done, total=total))


def lasting(seconds: float) -> str:
    """A time in words, as precisely as one wants to know it."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 90 * size or unit == "h":
            break
    return f"{seconds / size:.0f} {unit}"
