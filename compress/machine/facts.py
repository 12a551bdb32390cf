"""What of this machine decides a result, as text that belongs into keys. Known without any library."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from compress.machine import gpus


def machine_fact(kind: str) -> str:
    """What of this machine a `bound_to` kind stands for, as text."""
    if kind == "gpu":
        return gpus.fingerprint()
    if (
        kind == "processors"
    ):  # what decides how fast they are: their name, how many may be used, and by how many threads
        threads = os.environ.get("OMP_NUM_THREADS", "")
        return f"{processor()}, {len(processors())} of them, threads {threads or 'open'}, {machine_fact('isa')}"
    if kind == "isa":
        flags = _cpu_flags()
        return f"{platform.machine()} {' '.join(f for f in sorted(flags) if f.startswith(('avx', 'amx', 'sse4', 'asimd', 'sve')))}"
    return platform.machine()


def processor() -> str:
    """The processor's name."""
    lines = (line for line in _cpuinfo() if line.startswith("model name"))
    return next((line.split(":", 1)[1].strip() for line in lines), platform.processor() or platform.machine())


def processors() -> frozenset[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _cpu_flags() -> set[str]:
    found = (line for line in _cpuinfo() if line.startswith(("flags", "Features")))
    return next((set(line.split(":", 1)[1].split()) for line in found), set())


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
