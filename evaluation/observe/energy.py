"""Joules by the machine's own counters: processor packages through RAPL, GPUs through NVML.

They count what the whole machine draws, other programs and unavailable parts included: an energy is worth something on a machine that
does nothing else, and as a ratio of interleaved calls.
Sources: Linux, Documentation/power/powercap/powercap.rst; NVIDIA, nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

POWERCAP = Path("/sys/class/powercap")
ABSENT = "this machine has neither RAPL nor NVML counters that can be read"


@dataclass(frozen=True)
class Meter:
    """Counters read together. `read` gives joules since some beginning, so that only differences mean something."""

    name: str
    counters: tuple[Callable[[], float], ...]

    def read(self) -> float:
        return sum(counter() for counter in self.counters)


class Package:
    """A processor package's counter, which starts again at 0 after `max_energy_range_uj` microjoules: a minute to an hour."""

    def __init__(self, folder: Path) -> None:
        self.name = _text(folder / "name")
        self._file = folder / "energy_uj"
        self._range = int(_text(folder / "max_energy_range_uj"))
        self._last = int(_text(self._file))
        self._rounds = 0

    def __call__(self) -> float:
        """Joules since the counter's own zero before the first reading. Two overflows between readings look like one."""
        now = int(_text(self._file))
        self._rounds += now < self._last
        self._last = now
        return (self._rounds * self._range + now) / 1e6


def find_meter(powercap: Path = POWERCAP) -> Meter | None:
    """Every counter that this process may read, as one meter; None where there is none.

    Args:
        powercap: the folder in which Linux shows RAPL's domains.
    """
    packages, (cards, counters) = _packages(powercap), _cards()
    names = [f"RAPL {package.name}" for package in packages] + [f"NVML {card}" for card in cards]
    return Meter(", ".join(names), (*packages, *counters)) if names else None


def nvml() -> Any:
    """NVIDIA's management library, begun; None without it, or without a driver."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    return library


def _packages(powercap: Path) -> list[Package]:
    """One counter a package. Cores and graphics lie within it, and a second interface (mmio) shows the same counter again."""
    found: dict[str, Package] = {}
    for folder in sorted(powercap.glob("*rapl*:*"), key=lambda f: ("mmio" in f.name, f.name)):
        try:
            package = Package(folder)
        except (OSError, ValueError):  # most systems let only root read it: as good as absent
            continue
        if package.name.startswith("package"):
            found.setdefault(package.name, package)
    return list(found.values())


def _cards() -> tuple[list[str], list[Callable[[], float]]]:
    library = nvml()
    names: list[str] = []
    counters: list[Callable[[], float]] = []
    for index in range(library.nvmlDeviceGetCount() if library else 0):
        try:
            card = library.nvmlDeviceGetHandleByIndex(index)
            library.nvmlDeviceGetTotalEnergyConsumption(card)
            name = library.nvmlDeviceGetName(card)
        except library.NVMLError:  # older than Volta, or not ours to look at
            continue
        names.append(name.decode() if isinstance(name, bytes) else str(name))
        counters.append(_card(library, card))
    return names, counters


def _card(library: ModuleType, card: object) -> Callable[[], float]:
    """A GPU's joules since its driver was loaded."""
    return lambda: float(library.nvmlDeviceGetTotalEnergyConsumption(card)) / 1e3  # from millijoules


def _text(file: Path) -> str:
    return file.read_text().strip()
