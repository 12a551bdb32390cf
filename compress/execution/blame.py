"""Whose fault it is that work failed: the model's, a library's, the machine's, or pare's own."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from types import TracebackType

OURS = ("compress", "evaluation")
PARE = "pare"
OWN_CODE = "the model's own Python code"
REMOTE = "transformers_modules"  # the package that transformers loads a model's code into
AGAIN = "run the same command again once the cause is gone: finished stages are cached and training resumes"
NO_MEMORY = ("bad_alloc", "allocate memory", "not enough memory", "out of memory")
# As torch says it, of CUDA and of ROCm.
NO_DEVICE_MEMORY = r"out of memory\. Tried to allocate ([\d.]+ \w+)\. GPU (\d+) has a total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free"
# What compiled code raises, where no frame tells whose it is; pare itself raises errors of its own.
COMPILED = (RuntimeError, OSError)


def cause(error: BaseException) -> str:
    """What an error says, by its class and its own words; of a GPU's memory that is full, the numbers alone."""
    numbers = re.search(NO_DEVICE_MEMORY, str(error), re.DOTALL)
    if numbers:
        wanted, number, total, free = numbers.groups()
        return f"GPU {number} has no memory left: {wanted} more were asked for, and {free} of its {total} were free"
    return f"{type(error).__name__}: {error}"


def raised_by(error: BaseException) -> str:
    """What raised an error, in words: the library that pare called last, with its version; the model's own code; "pare" for
    pare itself; "" where nothing tells."""
    modules = [str(name) for name in _modules(error.__traceback__)]
    last = max((place for place, name in enumerate(modules) if name.partition(".")[0] in OURS), default=-1)
    if last < 0:
        return ""
    outside = modules[last + 1 :]
    if any(name.startswith(REMOTE) for name in outside):
        return OWN_CODE
    named = (_distribution(name) for name in (*outside, type(error).__module__))
    if found := next(filter(None, named), ""):
        return found
    return "" if outside or isinstance(error, COMPILED) else PARE


def remedy(error: BaseException) -> str:
    """What to do about an error that ended work on a model."""
    if re.search(NO_DEVICE_MEMORY, str(error), re.DOTALL):
        return f"give a smaller batch or fewer bits, free the GPU of other processes, or take a larger one, and {AGAIN}"
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in NO_MEMORY):
        return f"there was too little memory for it: free some, or take a machine that has more, and {AGAIN}"
    culprit = raised_by(error)
    if culprit == PARE:
        return "this is a fault of pare: please report it with the recipe and the run's events.jsonl; finished stages are cached"
    return f"it came out of {culprit}, where a cause may be known; {AGAIN}" if culprit else AGAIN


def _modules(trace: TracebackType | None) -> list[object]:
    found = []
    while trace:
        found.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return found


def _distribution(module: str) -> str:
    """The distribution that holds a module, and its version; "" where there is none, as for Python's own."""
    names = packages_distributions().get(module.partition(".")[0], [])
    try:
        return f"{names[0]} {version(names[0])}" if names and module.partition(".")[0] not in OURS else ""
    except PackageNotFoundError:
        return ""
