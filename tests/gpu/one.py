"""One section in this process, which is its own: python -m tests.gpu.one SECTION FOLDER full|tiny."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.gpu import sections
from tests.gpu.needs import gpu_name
from tests.gpu.results import DONE, Result, shown, write
from tests.gpu.sections import Section, parts

TAIL = 2000  # characters of a traceback that are kept


def run_section(part: str, section: Section, out: Path, tiny: bool) -> Result:
    """What it gave, which is on disk with every row, whatever becomes of it."""
    began, found = time.monotonic(), Result(part, section.name, tiny, gpu="" if tiny else gpu_name())

    def report(row: str, values: Mapping[str, object]) -> None:
        nonlocal found
        found = replace(found.with_row(row, values), seconds=round(time.monotonic() - began, 1))
        write(out, found)
        message = ", ".join(f"{key} {shown(value)}" for key, value in values.items())
        sys.stdout.write(f"{found.seconds:7.1f} s  {section.name}: {row}: {message}\n")
        sys.stdout.flush()

    write(out, found)
    sections.OUT = out
    try:
        section.run(tiny, report)
    except Exception as error:  # whatever it is, the other sections go on
        message = f"failed: {type(error).__name__}: {str(error).strip()[:300]}"
        found = replace(found, status=message, tail=traceback.format_exc()[-TAIL:])
        sys.stderr.write(found.tail)
    else:
        found = replace(found, status=DONE)
    found = replace(found, seconds=round(time.monotonic() - began, 1))
    write(out, found)
    return found


def main(name: str, out: str, size: str) -> int:
    part, section = next((part, one) for part, those in parts().items() for one in those if one.name == name)
    return 0 if run_section(part, section, Path(out), size == "tiny").status == DONE else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
