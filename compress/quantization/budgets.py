"""How many bits each layer gets so that all fit a budget of bytes and cost least: a multiple-choice knapsack, by greed on convex hulls.

Source: Sinha and Zoltners, "The Multiple-Choice Knapsack Problem" (1979): dominated choices go first, then the upgrade that saves most
for its bytes is taken as long as it fits. What it costs is at most the best there is plus what one upgrade saves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

WITHIN = 0.02  # of the budget, that a choice may stay under it
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
SIZED = "give a share such as 0.3 or 30%, or 120 MB"  # what a budget may be
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(B|kB|MB|GB)\s*")
_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")


@dataclass(frozen=True)
class Option:
    """One width of one layer: its bytes, and what it costs."""

    bits: int
    size: int
    cost: float


@dataclass(frozen=True)
class Choice:
    """Bits by layer, and what they take (bytes) and cost together."""

    bits: Mapping[str, int]
    size: int
    cost: float


def bytes_of(budget: float | str, whole: int) -> int:
    """A budget in bytes.

    Args:
        budget: a share of `whole`, also in percent, or a size with its unit: 120 MB.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(budget, str):
        return int(budget * whole)
    if why := unreadable(budget):
        raise ValueError(f"{why}: {SIZED}")
    if percent := _PERCENT.fullmatch(budget):
        return int(float(percent[1]) / 100 * whole)
    number, unit = _SIZE.fullmatch(budget).groups()  # type: ignore[union-attr]
    return int(float(number) * UNITS[unit])


def unreadable(budget: str) -> str:
    """Why a text is no size, or ""."""
    found, percent = _SIZE.fullmatch(budget), _PERCENT.fullmatch(budget)
    if (found and float(found[1])) or (percent and 0 < float(percent[1]) <= 100):
        return ""
    return f"`{budget[:40]}` is no size"


def choose(layers: Mapping[str, tuple[Option, ...]], budget: int) -> Choice:
    """An option a layer, within the budget if any choice is: else the smallest, which is over it."""
    hulls = {name: _hull(options) for name, options in layers.items()}
    at = dict.fromkeys(layers, 0)
    size = sum(hull[0].size for hull in hulls.values())
    steps = [(_worth(hull[i], hull[i + 1]), name, i) for name, hull in hulls.items() for i in range(len(hull) - 1)]
    # Along a hull the first upgrade is worth most, so this order takes each layer's own in turn; one that does not fit ends its layer's.
    for _, name, i in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        more = hulls[name][i + 1].size - hulls[name][i].size
        if at[name] == i and size + more <= budget:
            at[name], size = i + 1, size + more
    taken = {name: hulls[name][i] for name, i in at.items()}
    return Choice({name: o.bits for name, o in taken.items()}, size, sum(o.cost for o in taken.values()))


def missed(choice: Choice, budget: int, fixed: int = 0) -> str:
    """Why a choice does not meet a budget within `WITHIN`, with the nearest that can be had, or "".

    Args:
        fixed: bytes beside the layers, which no choice changes.
    """
    size = choice.size + fixed
    if (1 - WITHIN) * budget <= size <= budget:
        return ""
    nearest = f"the nearest in reach is {size / 1e6:.3g} MB"
    least = min(choice.bits.values(), default=0)
    most = max(choice.bits.values(), default=0)
    if size > budget:
        return f"all layers in {least} bits take more than the budget of {budget / 1e6:.3g} MB: {nearest}"
    every = f"all layers in {most} bits leave" if least == most else "the best choice of widths leaves"
    return f"{every} more than {WITHIN:.0%} of the budget of {budget / 1e6:.3g} MB: {nearest}"


def _worth(one: Option, other: Option) -> Fraction:
    """What an upgrade saves for each byte."""
    return (Fraction(one.cost) - Fraction(other.cost)) / (other.size - one.size)


def _hull(options: tuple[Option, ...]) -> list[Option]:
    """The options that some price of a byte would choose, from small to large: each costs less than the one before, and saves less for
    its bytes."""
    hull: list[Option] = []
    for one in sorted(options, key=lambda o: (o.size, o.cost)):
        if hull and one.cost >= hull[-1].cost:
            continue
        if hull and one.size == hull[-1].size:
            continue
        while len(hull) > 1 and _worth(hull[-2], hull[-1]) <= _worth(hull[-1], one):
            hull.pop()
        hull.append(one)
    return hull
