"""`pare report`: many runs in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from compress.commands.results import EVENTS, RESULT, read_result
from compress.errors import ManyProblems, Problem, UserError
from compress.events import Emit, Event

if TYPE_CHECKING:
    from evaluation.comparison import Comparison


def tabulate(places: Sequence[Path], emit: Emit) -> list[Comparison]:
    """The runs in these folders: each holds a `result.json`, or folders that do. What holds none that reads is warned of.

    Raises:
        UserError: none of them holds a run.
    """
    found: list[Comparison] = []
    problems: list[Problem] = []
    for place in places:
        for run in _runs(place) or [partial(_no_run, place)]:
            try:
                found.append(run())
            except UserError as error:
                problems += error.problems
    if not found:
        raise ManyProblems(tuple(problems))
    for problem in problems:
        emit(Event("warning", "left out of the table", message=str(problem)))
    return found


def _runs(place: Path) -> list[Callable[[], Comparison]]:
    """What reads each run in a folder."""
    inside = [place] if (place / RESULT).is_file() else sorted(f.parent for f in place.glob(f"*/{RESULT}"))
    return [partial(_found, folder) for folder in inside]


def _found(folder: Path) -> Comparison:
    return read_result(folder)[0]


def _no_run(place: Path) -> Comparison:
    if not place.is_dir():
        raise UserError("no such folder of runs", place=str(place), fix="give folders that `pare run` wrote")
    began = f", and {EVENTS} tells of a run that did not finish" if (place / EVENTS).is_file() else ""
    raise UserError(f"holds no result.json{began}", place=str(place), fix="give folders that `pare run` wrote")
