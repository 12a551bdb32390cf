"""What a section lacks here, known without importing any of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from importlib import metadata, util

LEAST = {
    "torch": (2, 11),
    "transformers": (5, 17),
    "diffusers": (0, 42),
    "pydantic": (2, 12),
}  # of which versions at least
GPU = "there is no NVIDIA GPU that nvidia-smi finds"


def missing(more: Iterable[str] = (), *, gpu: bool = True) -> list[str]:
    """What is not here of what all sections need and of `more` modules: a line each.

    Args:
        gpu: whether a GPU is needed.
    """
    found = [message for module in dict.fromkeys((*LEAST, *more)) if (message := _lacks(module))]
    return found + ([GPU] if gpu and not gpu_name() else [])


def _lacks(module: str) -> str:
    if util.find_spec(module) is None:
        return f"{module} is not installed: pip install {module.replace('_', '-')}"
    if module not in LEAST:
        return ""
    version = metadata.version(module)
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    least = ".".join(map(str, LEAST[module]))
    return "" if numbers >= LEAST[module] else f"{module} {version} is older than {least}"


def gpu_name() -> str:
    """The first GPU, as its driver names it; "" where there is none."""
    ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        reported = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return reported.partition("\n")[0].strip()
