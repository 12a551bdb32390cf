"""The machine is part of every speed: what it is, and two measured ceilings."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.catalogue import engine_names, find_engine, find_stage, stage_names
from compress.machine import deps
from compress.machine.devices import CPU
from compress.machine.facts import machine_fact
from compress.planning.keys import BASE_LIBRARIES
from evaluation.observe import energy, gpu_cards

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
DRIVER = Path("/proc/driver/nvidia/version")


def facts(device: str = CPU) -> dict[str, Any]:
    """Processor, flags, cores, threads, memory, library versions, measured read bandwidth (GB/s) and GEMM peak (GFLOP/s); of the GPU
    that the models ran on, if they did, what it is and the same two ceilings.

    What may make one run unlike the next is there too: the swap in use, how the clock is governed, the GPU's driver.

    Args:
        device: that models ran on, as `compress.machine.devices.settled` gives it.
    """
    import psutil
    import torch

    flags = machine_fact("isa").split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd")
    return {
        "processor": _processor(),
        "flags": [f for f in wanted if f in flags],
        "cores": psutil.cpu_count(logical=False) or 0,
        "logical_cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "swap_used_gb": round(psutil.swap_memory().used / 1e9, 1),
        "governor": _first_line(GOVERNOR),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: found for name in _libraries() if (found := deps.version(name))},
        "read_gb_s": round(_bandwidth(), 1),
        "gemm_gflop_s": round(_gemm(), 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "gpu_driver": _driver(),
        **gpu_cards.facts(device),
    }


def _libraries() -> tuple[str, ...]:
    """The distributions that engines and stages run on, and numpy, which every number goes through."""
    wanted = {"numpy", *BASE_LIBRARIES, *(find_engine(name).distribution for name in engine_names())}
    return tuple(sorted(wanted.union(*(find_stage(name).libraries for name in stage_names()))))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _driver() -> str:
    """The NVIDIA driver's version, or the line in which the kernel tells it; "" without one."""
    library = energy.nvml()
    if library is None:
        return _first_line(DRIVER)
    try:
        found = library.nvmlSystemGetDriverVersion()
    except library.NVMLError:
        return _first_line(DRIVER)
    return found.decode() if isinstance(found, bytes) else str(found)


def _first_line(file: Path) -> str:
    try:
        return file.read_text().strip().partition("\n")[0]
    except OSError:  # most virtual machines show no such thing
        return ""


def _best(work: Callable[[], object], seconds: float = 0.4) -> float:
    """The shortest of the runs that fit into `seconds`."""
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _bandwidth() -> float:
    import torch

    numbers = torch.ones(32_000_000, device=CPU)
    return float(numbers.numel() * 4 / _best(numbers.sum) / 1e9)


def _gemm(size: int = 1024) -> float:
    import torch

    a, b = (torch.randn(size, size, device=CPU) for _ in range(2))
    return float(2 * size**3 / _best(lambda: a @ b) / 1e9)
