"""Compiled: torch's own graph as native code for one kind of processor or GPU (AOTInductor)."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import read_json
from compress.engines import SETTINGS, Engine, tolerances
from compress.machine import deps
from compress.machine.devices import Kind, kind_of, target_of
from compress.machine.facts import machine_fact

PACKAGE = "compiled.pt2"


def compiled_for(folder: Path) -> Kind:
    """The kind of device that a package was compiled for. One for a processor does not say so: once there were no others."""
    return "cuda" if read_json(folder / SETTINGS).get("device") == "cuda" else "cpu"


def unfit(folder: Path, device: str) -> str:
    """Why a package was not compiled for a device as it is here, as far as its record tells; or ""."""
    if not (folder / SETTINGS).is_file():  # opening it says so
        return ""
    settings = read_json(folder / SETTINGS)
    version = str(settings.get("version", "")).partition("+")[0]
    for what, built, here in (
        ("", compiled_for(folder), kind_of(device)),
        ("a GPU of ", settings.get("gpu", ""), target_of(device)),
        ("torch ", version, deps.version("torch").partition("+")[0]),
        ("a processor with ", settings.get("isa"), machine_fact("isa")),
    ):
        if built != here:
            return f"it was compiled for {what}{built}, and here is {what}{here}"
    return ""


ENGINE = Engine(
    format="compiled",
    title="AOTInductor",
    distribution="torch",
    files=(PACKAGE,),
    devices=frozenset({"cpu", "cuda"}),
    torch_memory=True,
    native=True,
    precisions=tolerances("float32", "float16", "bfloat16"),
    unfit=unfit,
)
