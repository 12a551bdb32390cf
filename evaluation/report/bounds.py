"""Where a gate's margin lies on the axis of its row's contrast, so that a plot can show the interval against it."""

from __future__ import annotations

import math
import re

from evaluation.scores import Row

# The words of `evaluation.gates`; a test holds these patterns to every kind of gate it can write.
SPEEDUP = re.compile(r"at least (?P<size>[-+.\w]+)×")
MARGIN = re.compile(r"(?P<kind>within|not worse by) (?P<size>\d[-+.\de]*)(?P<percent>%)?")


def allowed(row: Row) -> tuple[float, float] | None:
    """The interval [low, high] that passes, in the contrast's own terms; an open side is infinite.

    Returns:
        None for a row without a gate, or whose gate is not in the words of `evaluation.gates`.
    """
    try:
        if found := SPEEDUP.fullmatch(row.verdict.gate):
            return float(found["size"]), math.inf
        if found := MARGIN.match(row.verdict.gate):
            return _band(row, found["kind"] == "within", float(found["size"]), bool(found["percent"]))
    except ValueError:
        return None
    return None


def _band(row: Row, both: bool, size: float, percent: bool) -> tuple[float, float]:
    margin = abs(row.baseline.value) * size / 100 if percent else size
    worse_is_less = row.better == "higher"
    low = -margin if both or worse_is_less else -math.inf
    high = margin if both or not worse_is_less else math.inf
    if row.compared == "difference":
        return low, high
    low, high = (1 + edge / row.baseline.value if row.baseline.value else math.nan for edge in (low, high))
    if worse_is_less:
        return max(0.0, low), high
    # A time's ratio is baseline ÷ candidate: what the candidate may grow to is the least the ratio may be.
    return (1 / high if high > 0 else math.inf), (1 / low if low > 0 else math.inf)
