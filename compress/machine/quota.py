"""How much of the processors a container may use, where that is less than it sees: libraries start a thread for each processor that they see, and
threads that are paused in turns wait for each other most of the time.

Source: the kernel's documentation of control groups, `cpu.max` (version 2), and of CFS bandwidth control, `cpu.cfs_quota_us` (version 1).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from compress.machine.facts import processors

GROUPS = Path("/sys/fs/cgroup")
THREADS = "OMP_NUM_THREADS"


def quota(groups: Path = GROUPS) -> float | None:
    """Processors' worth of time that this container may use; None where nothing limits it, or nobody says."""
    second = _words(groups / "cpu.max")
    first = _words(groups / "cpu" / "cpu.cfs_quota_us") + _words(groups / "cpu" / "cpu.cfs_period_us")
    for words in (second, first):
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):  # else "max" or -1: no limit
            return int(words[0]) / int(words[1])
    return None


def keep_to_quota(environment: MutableMapping[str, str], groups: Path = GROUPS) -> None:
    """Set how many threads libraries start that are imported later, and processes with this environment; where it is set already, it stays."""
    allowed = quota(groups)
    if allowed is not None and allowed < len(processors()):
        environment.setdefault(THREADS, str(max(1, int(allowed))))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, UnicodeDecodeError):
        return []
