"""python -m tests.gpu PART [SECTION …] [--tiny] [--out FOLDER]"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.gpu import needs
from tests.gpu.results import DONE, MACHINE, RUNNING, Result, read, write
from tests.gpu.sections import MOST_SECONDS, Section, parts

ROOT = Path(__file__).parents[2]
SHORTEST = 5.0  # seconds: with less left, a section is not begun


def command(section: Section, out: Path, tiny: bool) -> list[str]:
    """What runs a section in a process of its own."""
    return [sys.executable, "-m", "tests.gpu.one", section.name, str(out), "tiny" if tiny else "full"]


def run_part(
    part: str,
    sections: Sequence[Section],
    out: Path,
    *,
    tiny: bool,
    most: float = MOST_SECONDS,
    command: Callable[[Section, Path, bool], list[str]] = command,
) -> bool:
    """Whether all of them came to their end. A section that lacks something, or time, is written down as not run."""
    for line in needs.missing([m for section in sections for m in section.needs], gpu=not tiny):
        _say(f"missing: {line}")
    until, whole = time.monotonic() + most, True
    for section in sections:
        left = until - time.monotonic()
        lacking = needs.missing(section.needs, gpu=not tiny)
        if not lacking and left < SHORTEST:
            lacking = [f"the {most:.0f} s of part {part} are spent"]
        if lacking:
            write(out, Result(part, section.name, tiny, f"not run: {'; '.join(lacking)}"))
            _say(f"{section.name} not run: {'; '.join(lacking)}")
            whole = False
        else:
            found = _run_apart(part, section, out, tiny, min(section.seconds, left), command(section, out, tiny))
            whole &= found.status == DONE
    return whole


def _run_apart(part: str, section: Section, out: Path, tiny: bool, limit: float, command: list[str]) -> Result:
    """A section in a process of its own, which is stopped, with all that it began, after `limit` seconds."""
    began, nothing = time.monotonic(), Result(part, section.name, tiny)
    write(out, nothing)  # in the place of what another run left
    with subprocess.Popen(command, cwd=ROOT, env=_surroundings(), start_new_session=True) as process:
        try:
            ended = _named(process.wait(limit))
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left running
    found = read(out, section.name) or nothing
    if found.status == RUNNING:
        found = replace(found, status=ended, seconds=round(time.monotonic() - began, 1))
        write(out, found)
        _say(f"{section.name} {ended}")
    return found


def _named(code: int) -> str:
    return f"failed: its process left with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _surroundings() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    known = parts()
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="what a GPU gives, measured on one")
    parser.add_argument("part", choices=known)
    parser.add_argument("sections", nargs="*", help="only these of its sections")
    parser.add_argument("--tiny", action="store_true", help="the same on the processor, on tiny sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "reports", help="where gpu.md and gpu/*.json go")
    asked = parser.parse_args(arguments)
    sections = known[asked.part]
    if foreign := set(asked.sections) - {section.name for section in sections}:
        parser.error(f"part {asked.part} has no {', '.join(sorted(foreign))}: {', '.join(s.name for s in sections)}")
    chosen = tuple(s for s in sections if not asked.sections or s.name in asked.sections)
    out = asked.out.absolute()
    there = read(out, MACHINE)
    first = () if there and there.status == DONE and there.tiny == asked.tiny else known[MACHINE]
    chosen = tuple(dict.fromkeys((*first, *chosen)))
    return 0 if run_part(asked.part, chosen, out, tiny=asked.tiny) else 1


if __name__ == "__main__":
    sys.exit(main())
