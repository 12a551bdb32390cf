"""Compiled: torch's own graph as native code for one kind of processor (AOTInductor)."""

from __future__ import annotations

from compress.engines import Engine, tolerances

PACKAGE = "compiled.pt2"

ENGINE = Engine(
    format="compiled",
    title="AOTInductor",
    distribution="torch",
    files=(PACKAGE,),
    devices=frozenset({"cpu"}),
    precisions=tolerances("float32", "bfloat16"),
)
