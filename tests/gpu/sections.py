"""What a part consists of. A module of this package with `PARTS`, sections by the letter of their part, is found by that; it imports torch and
friends in its functions alone, for whoever lists sections may lack them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import tests.gpu

Report: TypeAlias = Callable[[str, Mapping[str, object]], None]  # a row's name, and its values: what JSON can say
MOST_SECONDS = 240  # of a part
OUT = Path("reports")  # where a section's own files go, below `gpu/`; set by whoever runs one


@dataclass(frozen=True)
class Section:
    """Something that is measured.

    name: also of its file. seconds: its time limit, on a GPU.
    run: reported whether sizes are tiny and all runs on the processor, and where to report rows, which are written as they come.
    needs: modules without which it cannot run, beside torch, transformers, diffusers and pydantic.
    """

    name: str
    seconds: int
    run: Callable[[bool, Report], None]
    needs: tuple[str, ...] = field(default=())


def parts() -> dict[str, tuple[Section, ...]]:
    """All sections by part, in the order of the modules' names."""
    found: dict[str, tuple[Section, ...]] = {}
    for module in sorted(one.name for one in pkgutil.iter_modules(tests.gpu.__path__) if one.name != "__main__"):
        given: Mapping[str, tuple[Section, ...]] = getattr(importlib.import_module(f"tests.gpu.{module}"), "PARTS", {})
        for part, sections in given.items():
            found[part] = found.get(part, ()) + sections
    return dict(sorted(found.items()))
