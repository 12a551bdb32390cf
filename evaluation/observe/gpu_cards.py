"""A GPU that speeds were measured on: what it is, two measured ceilings, and its clocks before and after, read and never set.

Source: NVIDIA, NVML API Reference: nvmlClocksEventReasons, nvmlDeviceGetClockInfo.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.machine.devices import kind_of
from evaluation.observe import energy

if TYPE_CHECKING:
    import torch

COPIED = 2**30  # bytes of the buffer that is copied: many times what caches hold
WIDE = 8192  # rows and columns of the product
SECONDS = 0.3  # that a ceiling is looked for
WARM_UP = 3
# Bits of NVML's reasons for a clock below the highest. Unavailable, and a clock that somebody set, are none of heat or power.
SLOWED = {
    0x04: "its power limit",
    0x08: "a slowdown by its hardware",
    0x20: "heat, by its driver",
    0x40: "heat, by its hardware",
    0x80: "a power brake from outside",
}


@dataclass(frozen=True)
class State:
    """Clocks in MHz, watts, degrees Celsius, and what slows the GPU at this moment, in words."""

    sm_mhz: int
    memory_mhz: int
    watts: float
    celsius: int
    slowed_by: tuple[str, ...] = ()


def facts(device: str, copied: int = COPIED, wide: int = WIDE) -> dict[str, Any]:
    """Name, capability, memory (GB), copy bandwidth (GB/s, bytes read and written), peak of bfloat16 products (TFLOP/s) and how
    float32 is computed; nothing where the device is none of NVIDIA's.

    Args:
        device: as `compress.machine.devices.settled` gives it.
        copied: bytes; wide: rows and columns. Both are halved until they take less than an eighth of what is free.
    """
    if kind_of(device) != "cuda":
        return {}
    import torch

    card = torch.cuda.get_device_properties(device)
    free, _ = torch.cuda.mem_get_info(device)
    while 16 * copied > free or 8 * 6 * wide**2 > free:
        copied, wide = copied // 2, wide // 2
    return {
        "gpu": card.name,
        "gpu_capability": f"SM{card.major}{card.minor}",
        "gpu_memory_gb": round(card.total_memory / 1e9, 1),
        "gpu_copy_gb_s": round(_copying(device, copied), 1),
        "gpu_gemm_bf16_tflop_s": round(_multiplying(device, wide), 1),
        "gpu_float32": arithmetic(),
    }


def arithmetic() -> str:
    """How float32 is computed on a GPU now: torch's own settings, which pare leaves as they are."""
    import torch

    products = torch.get_float32_matmul_precision()
    convolutions = "tf32" if torch.backends.cudnn.allow_tf32 else "highest"
    search = ", cuDNN searches" if torch.backends.cudnn.benchmark else ""
    same = ", deterministic" if torch.are_deterministic_algorithms_enabled() else ""
    return f"products {products}, convolutions {convolutions}{search}{same}"


def _copying(device: str, size: int) -> float:
    import torch

    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device) / 1e9


def _multiplying(device: str, size: int) -> float:
    """On numbers drawn at random: zeros are multiplied faster than any model's numbers will be."""
    import torch

    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _best(lambda: torch.mm(a, b, out=out), device) / 1e12


def _best(work: Callable[[], torch.Tensor], device: str) -> float:
    """The shortest of the runs that fit into `SECONDS`, by the device's own events."""
    import torch

    for _ in range(WARM_UP):
        work()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize(device)
        best = min(best, began.elapsed_time(ended) / 1e3)
    return best


# ---------------------------------------------------------------- clocks


def state(device: str) -> State | None:
    """How a GPU stands now; None where the device is none, or NVML says nothing of it."""
    library = energy.nvml() if kind_of(device) == "cuda" else None
    if library is None:
        return None
    try:
        card = _handle(library, device)
        sm, memory = (
            int(library.nvmlDeviceGetClockInfo(card, kind)) for kind in (library.NVML_CLOCK_SM, library.NVML_CLOCK_MEM)
        )
        watts = library.nvmlDeviceGetPowerUsage(card) / 1e3
        celsius = library.nvmlDeviceGetTemperature(card, library.NVML_TEMPERATURE_GPU)
        bits = _reasons(library)(card)
    except library.NVMLError:  # a part of a GPU, or a driver that says less
        return None
    return State(sm, memory, watts, celsius, tuple(why for bit, why in SLOWED.items() if bits & bit))


def _handle(library: Any, device: str) -> object:
    """NVML counts all GPUs of a machine, torch those that it may use: only the UUID means the same to both."""
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return library.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def _reasons(library: Any) -> Callable[[object], int]:
    """NVML's call for them, by its name of today or the one before."""
    names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    found: Callable[[object], int] = next(getattr(library, name) for name in names if hasattr(library, name))
    return found


def slowed(before: State | None, after: State | None) -> str:
    """In words, that a GPU did not run as fast as it can when a timing began or ended; "" where it did, or nobody knows."""
    found = [(when, one) for when, one in (("before", before), ("after", after)) if one and one.slowed_by]
    message = [f"{when} at {one.sm_mhz} MHz by {' and '.join(one.slowed_by)}" for when, one in found]
    return (
        f"the GPU was slowed {', '.join(message)}: measure again when it is cool and has the power it needs"
        if message
        else ""
    )


def clocks(before: State | None, after: State | None) -> dict[str, Any]:
    """What of that stands among a report's facts: before and after what was timed."""
    if before is None or after is None:
        return {}
    reported = [f"{one.sm_mhz} MHz, {one.watts:.0f} W, {one.celsius} °C" for one in (before, after)]
    why = sorted({*before.slowed_by, *after.slowed_by})
    return {"gpu_before_and_after": reported, "gpu_slowed_by": why}
