"""Fits the lines of `compress/planning/durations.json` to what caches have noted: `python -m tests.programs.durations CACHE [CACHE …]`.

Run recipes on models of several sizes first, on a machine that does nothing else. A line that nothing was noted of stays as it was.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from compress.planning.durations import FOLDER, LINES, Line, Run, lines, runs

DIGITS = 3


def fitted(seen: Sequence[Run]) -> Line:
    """The line that differs least from what was seen, in proportion to it; none of its numbers is negative."""
    facts = np.array([[1.0, one.work.parameters * one.work.rounds / 1e9, one.work.starts] for one in seen])
    seconds = np.array([one.seconds for one in seen])
    shares = facts / seconds[:, None]
    best, least = np.array([seconds.mean(), 0.0, 0.0]), np.inf
    for count in (1, 2, 3):
        for used in itertools.combinations(range(3), count):
            found = np.zeros(3)
            found[list(used)] = np.linalg.lstsq(shares[:, used], np.ones(len(seen)), rcond=None)[0]
            error = float(np.square(shares @ found - 1).sum())
            if (found >= 0).all() and found.any() and error < least - 1e-6:
                best, least = found, error
    return Line(*(float(f"{one:.{DIGITS}g}") for one in best))


def main(caches: Sequence[str]) -> None:
    """Write the lines."""
    seen: dict[str, list[Run]] = {}
    for cache in caches:
        for note in sorted((Path(cache) / FOLDER).iterdir()):
            seen.setdefault(note.name, []).extend(runs(note))
    known = {**lines(), **{name: fitted(found) for name, found in seen.items() if found}}
    LINES.write_text(json.dumps({"lines": {name: asdict(known[name]) for name in sorted(known)}}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
