"""Many runs in one table: verdict, speed, size and what each quality metric changed by, the gated ones first; behind each run its controls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.comparison import Comparison, Row, Status
from evaluation.report import formatting
from evaluation.report.controls import as_candidate
from evaluation.report.markdown import safe
from evaluation.report.result import plain

if TYPE_CHECKING:
    from rich.console import Console


def to_dicts(runs: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A tidy row for each metric of each run and of each of its controls, JSON-safe; `control` is "" of the candidate."""
    return [
        plain({"run": name, "control": control, "status": run.status, **row})
        for run, name, control in _with_controls(runs)
        for row in run.records()
    ]


def _with_controls(runs: Sequence[Comparison]) -> list[tuple[Comparison, str, str]]:
    """Each run with its name, and behind it as it reads with each of its controls for its candidate, with that one's."""
    found = []
    for run, name in zip(runs, labels(runs), strict=True):
        found.append((run, name, ""))
        found += [(as_candidate(run, control), name, control.stage) for control in run.controls]
    return found


def labels(runs: Sequence[Comparison]) -> list[str]:
    """What each run is called: its recipe's name, beside it its folder where another has the same name."""
    names = Counter(run.name for run in runs)
    short = Counter((run.name, Path(run.directory).name) for run in runs)
    found = []
    for run in runs:
        folder = Path(run.directory).name
        beside = folder if short[run.name, folder] == 1 else run.directory
        found.append(run.name if names[run.name] == 1 or not beside else f"{run.name} ({beside})")
    return found


def columns(runs: Sequence[Comparison]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and the cells of each run in words."""
    headings, cells, _ = _table(runs)
    return headings, cells


def _table(runs: Sequence[Comparison]) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[Status]]:
    """As `columns`, with the verdict of each line."""
    judging = [row for run in runs for row in run.rows if row.compared == "difference"]
    judged = dict.fromkeys(row.metric for row in sorted(judging, key=lambda row: row.gate is None))  # gated ones first
    headings = ("run", "verdict", "speed", "weights", *judged, "processor")
    named = [(run, f"{name}, control {control}" if control else name) for run, name, control in _with_controls(runs)]
    return headings, [_cells(run, name, tuple(judged)) for run, name in named], [run.status for run, _ in named]


def _cells(run: Comparison, name: str, judged: Sequence[str]) -> tuple[str, ...]:
    rows = {row.metric: row for row in run.rows}
    speed = formatting.speed_of(run)
    return (
        name,
        run.status,
        f"{_contrast(speed)} {speed.title}" if speed else "–",
        _contrast(rows.get("size")),
        *(_judged(rows.get(name)) for name in judged),
        str(run.machine.get("processor", "")),
    )


def _contrast(row: Row | None) -> str:
    return formatting.contrast(row) if row and math.isfinite(row.contrast.value) else "–"


def _judged(row: Row | None) -> str:
    return f"{_contrast(row)} {formatting.MARKS[row.verdict.status][0]}" if row else "–"


def markdown(runs: Sequence[Comparison]) -> str:
    """The table for a README or a pull request."""
    headings, cells = columns(runs)
    lines = ["| " + " | ".join(map(safe, headings)) + " |", "|---" * len(headings) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(safe, row)) + " |" for row in cells]) + "\n"


def show(runs: Sequence[Comparison], console: Console | None = None) -> None:
    """The table for a terminal."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from evaluation.report.terminal import COLOURS

    headings, cells, statuses = _table(runs)
    found = Table(*headings, box=box.SIMPLE_HEAD)
    for status, row in zip(statuses, cells, strict=True):
        styles = ["", COLOURS[status], *[""] * (len(row) - 2)]
        found.add_row(*(Text(formatting.visible(c), style=s) for c, s in zip(row, styles, strict=True)))
    (console or Console(width=None if sys.stdout.isatty() else 160)).print(found)
