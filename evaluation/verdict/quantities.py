"""Quantities as people write them, `5%`, `200 ms`, `1 GB`, in a metric's own unit."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_BYTES = {"B": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3, "TB": 1e6}
_BINARY = {"KiB": 1024 / 1e6, "MiB": 1024**2 / 1e6, "GiB": 1024**3 / 1e6}
# A metric's unit: what else may be written, and how many of its unit that is.
UNITS: dict[str, dict[str, float]] = {
    "MB": {**_BYTES, **_BINARY},
    "ms": {"µs": 1e-3, "us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4},
    "s": {"µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0},
    "/s": {"/s": 1.0, "tokens/s": 1.0, "pictures/s": 1.0, "/min": 1 / 60},
    "J": {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "Wh": 3600.0},
    "GFLOP": {"MFLOP": 1e-3, "GFLOP": 1.0, "TFLOP": 1e3},
    "nats": {"nats": 1.0, "bits": math.log(2)},
}
_NUMBER = re.compile(r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*")


class Amount(NamedTuple):
    """A quantity in a metric's unit, or, if `relative`, as a share of the baseline's value."""

    size: float
    relative: bool = False


def amount(given: float | str, unit: str) -> Amount | None:
    """What is written, in `unit`; None where it is no quantity, or one of something else."""
    if not isinstance(given, str):
        return Amount(given)
    found = _NUMBER.fullmatch(given)
    if found is None:
        return _bare(given)
    number, written = float(found[1]), found[2]
    if written == "%":
        return Amount(number / 100, relative=True)
    factor = 1.0 if written in ("", unit) else _factor(written, unit)
    return None if factor is None else Amount(number * factor)


def units(unit: str) -> tuple[str, ...]:
    """The units that a quantity of a metric may be written in."""
    return tuple(UNITS.get(unit, (unit,) if unit else ()))


def _factor(written: str, unit: str) -> float | None:
    known = UNITS.get(unit, {})
    loose = {name.casefold(): factor for name, factor in known.items()}
    return known.get(written, loose.get(written.casefold()))


def _bare(text: str) -> Amount | None:
    """`nan`, `inf` and their like, which whoever asks refuses by name."""
    try:
        return Amount(float(text.removesuffix("%")), text.endswith("%"))
    except ValueError:
        return None
