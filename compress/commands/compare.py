"""`pare compare`: one run's candidate with another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compress.commands.results import read_result
from compress.errors import UserError

if TYPE_CHECKING:
    from evaluation.comparison import Comparison


def compare(old: Path, new: Path, out: Path, *, across_machines: bool = False, tolerance: str = "10%") -> Comparison:
    """Compare one run's candidate with another's; writes the reports into `out`.

    Args:
        old, new: `result.json`, or the folder it lies in.
        across_machines: compare only what each run's ratios to its own baseline say.
        tolerance: by how much a speed, a size or a memory may be worse.

    Raises:
        UserError: a file is no result, or the two cannot be compared.
    """
    from evaluation.comparison.two_runs import Run, against
    from evaluation.report import write

    for path in (old, new):
        if out.resolve() == (path if path.is_dir() else path.parent).resolve():
            raise UserError(
                "the comparison would overwrite a run",
                place=str(out),
                fix="give another folder with --out (out= in Python)",
            )
    one, other = (Run(*read_result(path)) for path in (old, new))
    found = replace(against(one, other, across_machines, tolerance), directory=str(out))
    write(found, out)
    return found
