"""The table a run ends with."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from compress.planning.keep_decision import decisions
from evaluation.comparison import Comparison
from evaluation.report import controls, formatting, sensitivity
from evaluation.report.summary import questions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "not gated": ""}
HEADINGS = ("metric", "baseline", "candidate", "difference or ratio, 95%", "verdict")


def table(comparison: Comparison) -> Table:
    """The rows as a rich table; rich leaves the colours out where there is no terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(
        title=Text(formatting.visible(comparison.name), style="bold"), title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading in HEADINGS:
        left = heading in ("metric", "verdict")
        found.add_column(heading, justify="left" if left else "right", no_wrap=heading == "verdict")
    for row in comparison.rows:
        cells = (row.title, *formatting.scores(row), formatting.contrast(row))
        verdict = Text(formatting.mark(row), style=COLOURS[row.verdict.status])
        found.add_row(*(Text(formatting.visible(cell)) for cell in cells), verdict)
    return found


def text(comparison: Comparison) -> str:
    """What `show` prints, without colours, 120 columns wide."""
    from rich.console import Console

    out = Console(file=io.StringIO(), width=120, force_terminal=False, force_jupyter=False)
    show(comparison, out)
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table, the three answers, the controls, what held a gate back, the verdict, where the report lies, and the candidate with how to call it."""
    from rich.console import Console
    from rich.text import Text

    out = console or Console(width=None if sys.stdout.isatty() else 120)
    lines = [f"{question} {answer}" for question, answer in questions(comparison)]
    lines += controls.lines(comparison)
    held = (row for row in comparison.rows if row.verdict.status in ("fail", "inconclusive"))
    lines += [f"{row.title}: {row.verdict.gate}: {formatting.reason(row)}" for row in held]
    lines += [f"{name}: {formatting.runs(comparison, side)}" for name, side in formatting.sides(comparison)]
    lines += (*decisions(comparison.stages), *sensitivity.lines(comparison.stages), *formatting.unmeasured(comparison))
    lines += [f"warning: {message}" for message in comparison.warnings]
    out.print(table(comparison))
    for line in lines:
        out.print(Text(formatting.visible(line)))
    out.print(Text(formatting.VERDICTS[comparison.status], style=COLOURS[comparison.status] or "bold"))
    if comparison.directory:
        out.print(Text(formatting.visible(f"report: {comparison.directory}/report.html")), soft_wrap=True)
    for line in formatting.handed(comparison):
        out.print(Text(formatting.visible(line)), soft_wrap=True)
