"""pare: a text or image-generation model and a recipe in, a faster model and an honest verdict out.

Importing this loads nothing heavy; the names below arrive when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.api import apply, check, evaluate, load, plan, plan_all, run, run_all
    from compress.errors import PareError

_HOME = {
    "PareError": "compress.errors",
    "apply": "compress.api",
    "check": "compress.api",
    "evaluate": "compress.api",
    "load": "compress.api",
    "plan": "compress.api",
    "plan_all": "compress.api",
    "run": "compress.api",
    "run_all": "compress.api",
}
__all__ = ["PareError", "apply", "check", "evaluate", "load", "plan", "plan_all", "run", "run_all"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
