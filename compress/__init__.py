"""pare: a text or image-generation model and a recipe in, a faster model and an honest verdict out.

Importing this loads nothing heavy; the names below arrive when first used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# No telemetry: what libraries would send is switched off before any of them is imported, here and in processes started from here.
# ONNX Runtime would keep a database of events under the home folder, and asks once it is loaded, too late for its own function.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

if TYPE_CHECKING:
    from compress.api import (
        apply,
        available,
        cache,
        check,
        compare,
        doctor,
        evaluate,
        explain,
        load,
        plan,
        plan_all,
        reference,
        report,
        run,
        run_all,
        schema,
        text,
    )
    from compress.errors import PareError

__all__ = [
    "PareError",
    "apply",
    "available",
    "cache",
    "check",
    "compare",
    "doctor",
    "evaluate",
    "explain",
    "load",
    "plan",
    "plan_all",
    "reference",
    "report",
    "run",
    "run_all",
    "schema",
    "text",
]
_HOME = {**dict.fromkeys(__all__, "compress.api"), "PareError": "compress.errors"}
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
