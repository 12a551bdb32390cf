"""Which of several ways to do the same thing is fastest here: all in each block, in random order, so that drift hits all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LEAST_SECONDS = 0.02  # of a timed block: the clock's and the scheduler's jitter are far below it
WARM_SECONDS = 0.5


@dataclass(frozen=True)
class Pace:
    """A runner's time for one call, and how far its own blocks lie apart."""

    seconds: float  # median over the blocks
    spread: float  # half the distance between the quartiles, over the median: the noise floor


def race(calls: Mapping[str, Callable[[], object]], blocks: int = 12) -> dict[str, Pace]:
    """Time each call in every block, in an order that is drawn anew for each: what ran just before leaves its mark on a call.

    A fast call is repeated within its block until that lasts `LEAST_SECONDS`.
    """
    repeats = {name: _warm(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    draw = random.Random(0)
    for _ in range(blocks):
        for name in draw.sample(list(calls), len(calls)):
            times[name].append(_timed(calls[name], repeats[name]))
    return {name: _pace(found) for name, found in times.items()}


def fastest(paces: Mapping[str, Pace]) -> str:
    """The name of the lowest median."""
    return min(paces, key=lambda name: paces[name].seconds)


def undecided(paces: Mapping[str, Pace]) -> tuple[str, ...]:
    """The names that may be fastest: those whose noise reaches that of the lowest median, which is among them."""
    best = paces[fastest(paces)]
    return tuple(n for n, p in paces.items() if p.seconds * (1 - p.spread) <= best.seconds * (1 + best.spread))


def _warm(call: Callable[[], object]) -> int:
    """Call until caches, clocks and allocators have settled. Returns how many calls make a block."""
    until, least = time.perf_counter() + WARM_SECONDS, float("inf")
    while True:
        took = _timed(call, 1)
        least = min(least, took)
        if time.perf_counter() >= until:
            return max(1, round(LEAST_SECONDS / max(least, 1e-9)))


def _timed(call: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def _pace(times: Sequence[float]) -> Pace:
    middle = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return Pace(middle, (high - low) / 2 / middle)
