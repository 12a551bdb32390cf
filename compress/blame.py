"""Whose fault it is that a stage failed: the model's that it was given, a library's, the machine's, or pare's own."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, version
from types import TracebackType

OURS = ("compress", "evaluation")
AGAIN = "run the same command again once the cause is gone: finished stages are cached and training resumes"
NO_MEMORY = ("memory", "alloc")  # words in what libraries say when they get none


def raised_by(error: BaseException) -> str:
    """What raised an error, in words: the library that pare called last, with its version; "pare" for pare itself; "" where
    neither is on the way there."""
    modules = [str(name).partition(".")[0] for name in _modules(error.__traceback__)]
    last = max((place for place, name in enumerate(modules) if name in OURS), default=-1)
    if last < 0:
        return ""
    outside = modules[last + 1 :]
    return _distribution(outside[0]) if outside else "pare"


def remedy(error: BaseException) -> str:
    """What to do about an error that ended a stage."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and all(word in str(error).lower() for word in NO_MEMORY)
    ):
        return f"there was too little memory for it: free some, or take a machine that has more, and {AGAIN}"
    culprit = raised_by(error)
    if culprit == "pare":
        return "this is a fault of pare: please report it with the recipe; finished stages are cached"
    return f"it came out of {culprit}, where a cause may be known; {AGAIN}" if culprit else AGAIN


def _modules(trace: TracebackType | None) -> list[object]:
    found = []
    while trace:
        found.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return found


def _distribution(module: str) -> str:
    """The distribution that holds a module, and its version; "" where there is none."""
    names = packages_distributions().get(module, [])
    try:
        return f"{names[0]} {version(names[0])}" if names else ""
    except PackageNotFoundError:
        return ""
