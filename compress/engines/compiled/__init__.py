"""Compiled: torch's own graph as native code for one kind of processor or GPU (AOTInductor)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifact import read_json
from compress.engines import Engine, tolerances

if TYPE_CHECKING:
    from compress.machine.devices import Kind

PACKAGE = "compiled.pt2"
SETTINGS = "engine.json"


def compiled_for(folder: Path) -> Kind:
    """The kind of device that a package was compiled for. One for a processor does not say so: once there were no others."""
    file = folder / SETTINGS
    return "cuda" if file.is_file() and read_json(file).get("device") == "cuda" else "cpu"


ENGINE = Engine(
    format="compiled",
    title="AOTInductor",
    distribution="torch",
    files=(PACKAGE,),
    devices=frozenset({"cpu", "cuda"}),
    precisions=tolerances("float32", "float16", "bfloat16"),
    compiled_for=compiled_for,
)
