"""The table a run ends with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from evaluation.report import words
from evaluation.scores import Comparison

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "not gated": ""}


def table(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    found = Table(title=comparison.name, title_justify="left")
    for heading in ("metric", "baseline", "candidate", "difference or ratio, 95%", "verdict"):
        found.add_column(heading, justify="right" if heading in ("baseline", "candidate") else "left")
    for row in comparison.rows:
        scores = [Text(words.score(e, row.unit)) for e in (row.baseline, row.candidate)]
        found.add_row(
            Text(row.title),
            *scores,
            Text(words.contrast(row)),
            Text(words.mark(row), style=COLOURS[row.verdict.status]),
        )
    return found


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table, the three answers, the verdict and where the report lies."""
    from rich.console import Console

    out = console or Console(width=None if sys.stdout.isatty() else 120)
    out.print(table(comparison))
    for question, answer in words.questions(comparison):
        out.print(f"{question} {answer}", markup=False, highlight=False)
    for row in comparison.rows:
        if row.verdict.status in ("fail", "inconclusive"):
            more = f"; needs about n = {row.verdict.n_needed}" if row.verdict.n_needed else ""
            out.print(f"{row.title}: {row.verdict.gate}: {row.verdict.why}{more}", markup=False, highlight=False)
    out.print(words.VERDICTS[comparison.status], style=COLOURS[comparison.status] or "bold")
    if comparison.directory:
        out.print(f"report: {comparison.directory}/report.html", markup=False, highlight=False, soft_wrap=True)
