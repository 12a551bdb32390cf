"""Events on a terminal: one bar for each activity over two seconds, with the time left. Quiet when piped."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from compress.events import Event, lasting

PATIENCE = 2.0  # seconds before an activity earns a bar


@dataclass(frozen=True)
class _Reached:
    """How far an activity is, and when and where it began to be counted here: resumed work begins in its middle."""

    since: float
    start: int
    done: int
    total: int


@dataclass
class Progress:
    """A listener, and a context in which it may draw. Quiet: one plain line per stage and warning on standard error, and one for
    each minute in which a stage says nothing."""

    quiet: bool
    beat: float = 60.0  # seconds
    _bars: Any = None
    _tasks: dict[str, Any] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _at_work: dict[str, float] = field(default_factory=dict)  # when a stage that has not finished was started
    _reached: dict[str, _Reached] = field(default_factory=dict)  # by activity, the last one first
    _left: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Progress:
        if not self.quiet:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bars

            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description:<44}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bars.start()
        else:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._bars:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        if event.kind == "progress":
            self._advance(event)
        elif event.kind == "started":
            self._say(f"{event.what} …")
            self._at_work[event.what] = time.monotonic()
            self._spin(event.what)
        elif event.kind in ("finished", "cached"):
            self._settle(event)
        elif event.kind == "warning":
            self._say(f"warning: {event.what}: {event.message}" if event.what else f"warning: {event.message}")
        elif event.kind == "loss":
            self._show_loss(event)
        elif event.message:
            self._say(f"{event.what}: {event.message}")

    def _advance(self, event: Event) -> None:
        before = self._reached.pop(event.what, None)
        anew = before is None or event.done < before.done
        since, start = (before.since, before.start) if before and not anew else (time.monotonic(), event.done)
        self._reached = {event.what: _Reached(since, start, event.done, event.total), **self._reached}
        if not self._bars:
            return
        began = self._began.setdefault(event.what, time.monotonic())
        if event.what not in self._tasks and time.monotonic() - began >= PATIENCE:
            self._tasks[event.what] = self._bars.add_task(event.what, total=event.total or None)
        if event.what in self._tasks:
            self._bars.update(self._tasks[event.what], completed=event.done, total=event.total or None)

    def _show_loss(self, event: Event) -> None:
        activity = f"{event.what} training".strip()
        if self._bars and activity in self._tasks:
            self._bars.update(self._tasks[activity], description=f"{activity}, loss {event.facts['loss']:.4g}")

    def _spin(self, what: str) -> None:
        if self._bars:
            self._tasks[what] = self._bars.add_task(what, total=None)

    def _beat(self) -> None:
        """Whoever watches a log sees that a long export goes on."""
        while not self._left.wait(self.beat):
            at_work = tuple(self._at_work.items())
            for what, since in at_work:
                self._say(f"{what}: at work for {lasting(time.monotonic() - since)}{self._far(what)}")
            if not at_work and (message := self._far()):  # an evaluation is no stage
                self._say(message)

    def _far(self, what: str = "") -> str:
        """How far the latest activity is, of a stage or of whatever goes on, where it counts and is not done, and how long the rest takes if
        it goes on so."""
        prefix, before = (f"{what} ", ", ") if what else ("", "")
        reached = tuple(self._reached.items())
        latest = ((n.removeprefix(prefix), o) for n, o in reached if n.startswith(prefix) and o.done < o.total)
        name, found = next(latest, ("", None))
        if found is None:
            return ""
        each = (time.monotonic() - found.since) / (found.done - found.start) if found.done > found.start else None
        left = "" if each is None else f", about {lasting(each * (found.total - found.done))} left"
        return f"{before}{name} {found.done} of {found.total}{left}"

    def _settle(self, event: Event) -> None:
        self._at_work.pop(event.what, None)
        self._reached = {n: one for n, one in self._reached.items() if not n.startswith(f"{event.what} ")}
        if self._bars and event.what in self._tasks:
            self._bars.update(self._tasks.pop(event.what), total=1, completed=1)
        if event.kind == "cached":
            self._say(f"{event.what}: cached")
        elif "seconds" in event.facts:
            self._say(f"{event.what}: done in {float(event.facts['seconds']):.1f} s")

    def _say(self, line: str) -> None:
        if self._bars:
            self._bars.console.print(line, markup=False, emoji=False, highlight=False)
        else:
            print(line, file=sys.stderr)
