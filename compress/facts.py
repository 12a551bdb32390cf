"""What of this machine decides a result, as text that belongs into keys. Told without any library."""

from __future__ import annotations

import platform
from pathlib import Path

from compress import gpus


def machine_fact(kind: str) -> str:
    """What of this machine a `bound_to` kind stands for, as text."""
    if kind == "gpu":
        return gpus.fingerprint()
    if kind == "isa":
        flags = _cpu_flags()
        return f"{platform.machine()} {' '.join(f for f in sorted(flags) if f.startswith(('avx', 'amx', 'sse4', 'asimd', 'sve')))}"
    return platform.machine()


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())
