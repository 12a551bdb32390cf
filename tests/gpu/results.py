"""What sections leave: `gpu/SECTION.json` each, written anew with every row, and `gpu.md`, made of all that are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

RUNNING, DONE = "running", "done"
MACHINE = "machine"  # the section whose one row stands at the top
HEAD = """\
# What a GPU gives

By `make gpu PART=a…l`, which runs each section in a process of its own. Random weights, but for the zoo's models. Times are medians;
ratios are of interleaved calls.
"""


@dataclass(frozen=True)
class Result:
    """What a section gave so far.

    status: RUNNING, DONE, or in words why there is no more. seconds: since it began. tail: the end of what it stated, where it failed.
    gpu: its name; "" where all ran on the processor.
    """

    part: str
    section: str
    tiny: bool
    status: str = RUNNING
    seconds: float = 0.0
    rows: tuple[Mapping[str, Any], ...] = field(default=())
    tail: str = ""
    gpu: str = ""

    def with_row(self, name: str, values: Mapping[str, object]) -> Result:
        return replace(self, rows=(*self.rows, {"row": name, **values}))


def write(out: Path, result: Result) -> None:
    """Its file, which is whole at any moment; and the report."""
    folder = out / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{result.section}.partial"
    partial.write_text(json.dumps(asdict(result), indent=1, default=str) + "\n")
    partial.replace(_file(out, result.section))
    (out / "gpu.md").write_text(markdown(read_all(out)))


def read(out: Path, section: str) -> Result | None:
    """What a section left, or None where it left nothing that reads."""
    try:
        found = json.loads(_file(out, section).read_text())
        return Result(**{**found, "rows": tuple(found["rows"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_all(out: Path) -> list[Result]:
    """By part; within one, in the order in which they were run."""
    files = sorted((out / "gpu").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    return sorted(filter(None, (read(out, file.stem) for file in files)), key=lambda one: one.part)


def _file(out: Path, section: str) -> Path:
    return out / "gpu" / f"{section}.json"


def markdown(results: Sequence[Result]) -> str:
    """The machine, what became of each section, and the rows of each."""
    lines = [HEAD]
    for one in results:
        if one.section == MACHINE:
            lines += [f"{_sentence(row)}.\n" for row in one.rows]
    rest = [one for one in results if one.section != MACHINE]
    lines += ["| part | section | on | | seconds |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {one.part} | {one.section} | {_place(one)} | {_status(one)} | {one.seconds:.0f} |" for one in rest]
    for one in rest:
        lines += ["", f"## {one.section}", "", *_table(one.rows)] if one.rows else []
    return "\n".join(lines) + "\n"


def _place(one: Result) -> str:
    return "tiny, on the processor" if one.tiny else one.gpu


def _status(one: Result) -> str:
    return " ".join(one.status.split()).replace("|", "\\|")


def _sentence(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in row.items() if name != "row")


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join('' if name == 'row' else name for name in columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(shown(row[name]) if name in row else '' for name in columns)} |"


def shown(value: object) -> str:
    """A value in a cell: numbers to four digits, several in brackets."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return " ".join(str(value).split()).replace("|", "\\|")
