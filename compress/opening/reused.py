"""The ways to tell what a transformer's blocks would give: each decides at the first block of a call whether the others run.

States hold what one pass of guidance leaves the next step's, and nothing of another image; in the rows of a batch each image decides by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from compress.algorithms.reuse import Drift, Series, begun, chosen, growth, row_changes, spread
from compress.opening.denoising import At

State = dict[str, Any]


class Streams(NamedTuple):
    """What blocks hand on: the image's stream [rows, tokens, channels], and the text's where they have two."""

    hidden: torch.Tensor
    text: torch.Tensor | None

    def plus(self, other: Streams) -> Streams:
        both = self.text is not None and other.text is not None
        return Streams(self.hidden + other.hidden, self.text + other.text if both else self.text)  # type: ignore[operator]

    def minus(self, other: Streams) -> Streams:
        both = self.text is not None and other.text is not None
        return Streams(self.hidden - other.hidden, self.text - other.text if both else None)  # type: ignore[operator]

    def where(self, rows: torch.Tensor, other: Streams) -> Streams:
        """These in the rows that are true, the others elsewhere."""
        both = self.text is not None and other.text is not None
        text = chosen(rows, self.text, other.text) if both else self.text  # type: ignore[arg-type]
        return Streams(chosen(rows, self.hidden, other.hidden), text)


class Reusing(Protocol):
    """A way to tell what blocks would give."""

    def begin(self, state: State) -> None:
        """A call begins."""

    def foretell(self, state: State, at: At, entered: Streams) -> Streams | None:
        """What all blocks would give, judged by what they are given; None where they have to run."""

    def look(self, state: State, entered: Streams, first: Streams) -> Streams | None:
        """What all blocks would give, judged by what the first one gave; None where the others have to run."""

    def keep(self, state: State, at: At, out: Streams) -> Streams | None:
        """All blocks ran, and this is what they gave; what is given in its place, None: that."""


class FirstBlock:
    """Where the first block changes its stream much as it did when all ran last, the others are taken to do so too.

    An image that would be computed beside others gets what it would get alone: a row that reuses does so too where the blocks run for the
    sake of other rows.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def begin(self, state: State) -> None:
        state.pop("rows", None)

    def foretell(self, state: State, at: At, entered: Streams) -> Streams | None:
        return None

    def look(self, state: State, entered: Streams, first: Streams) -> Streams | None:
        state["first"], state["now"] = first, first.hidden - entered.hidden
        if "rest" not in state or self.threshold == 0:
            return None
        compute = ~(row_changes(state["now"], state["moved"]) < self.threshold)  # also where no number tells
        rows = int(compute.sum())
        if rows == 0:
            return first.plus(state["rest"])
        if rows < len(compute):
            state["rows"] = compute
        return None

    def keep(self, state: State, at: At, out: Streams) -> Streams | None:
        first, moved = state.pop("first"), state.pop("now")
        rest, rows = out.minus(first), state.pop("rows", None)
        if rows is None:
            state["moved"], state["rest"] = moved, rest
            return None
        before = state["rest"]
        state["moved"], state["rest"] = chosen(rows, moved, state["moved"]), rest.where(rows, before)
        return out.where(rows, first.plus(before))


class TaylorSeer:
    """Between steps at which all blocks run, what they give is foretold by a Taylor series over those."""

    def __init__(self, interval: int, warmup: int, order: int) -> None:
        self.interval, self.warmup, self.order = interval, warmup, order

    def begin(self, state: State) -> None:
        pass

    def foretell(self, state: State, at: At, entered: Streams) -> Streams | None:
        series = state.get("series")
        if series is None or at.step < self.warmup or (at.step - self.warmup + 1) % self.interval == 0:
            return None
        return Streams(series.at(at.step).to(entered.hidden.dtype), entered.text)

    def look(self, state: State, entered: Streams, first: Streams) -> Streams | None:
        return None

    def keep(self, state: State, at: At, out: Streams) -> Streams | None:
        series: Series | None = state.get("series")
        if series is not None and series.step < at.step:
            state["series"] = series.further(at.step, out.hidden, self.order)
        else:
            state["series"] = begun(at.step, out.hidden)
        return None


class Mag:
    """What all blocks added at the last step at which they ran is added again, while the sizes of what they add, looked at beforehand, say that
    it is not far off.

    ratios: by step, how many times as large what they add is as at the step before. skip: most steps in a row that reuse. retain: the share of
    the steps, at the beginning, that all run.
    """

    def __init__(self, ratios: Sequence[float], threshold: float, skip: int, retain: float) -> None:
        self.ratios, self.threshold, self.skip, self.retain = tuple(ratios), threshold, skip, retain

    def begin(self, state: State) -> None:
        pass

    def foretell(self, state: State, at: At, entered: Streams) -> Streams | None:
        state["entered"] = entered.hidden
        if at.step < int(self.retain * at.steps + 0.5):
            return None
        ratios, drift = spread(self.ratios, at.steps), state.setdefault("drift", Drift())
        allowed = drift.allows(ratios[min(at.step, len(ratios) - 1)], self.threshold, self.skip)
        if not allowed or "added" not in state:
            state["drift"] = Drift()
            return None
        return Streams(entered.hidden + state["added"], entered.text)

    def look(self, state: State, entered: Streams, first: Streams) -> Streams | None:
        return None

    def keep(self, state: State, at: At, out: Streams) -> Streams | None:
        state["added"] = out.hidden - state.pop("entered")
        return None


class Looking:
    """Passes over nothing, and tells by how much what the blocks add grows from step to step: `ratios`, by step, of each call and row at it."""

    def __init__(self) -> None:
        self.ratios: dict[int, list[float]] = {}

    def begin(self, state: State) -> None:
        pass

    def foretell(self, state: State, at: At, entered: Streams) -> Streams | None:
        state["entered"] = entered.hidden
        return None

    def look(self, state: State, entered: Streams, first: Streams) -> Streams | None:
        return None

    def keep(self, state: State, at: At, out: Streams) -> Streams | None:
        added = out.hidden - state.pop("entered")
        grown = growth(added, state["added"]) if "added" in state else 1.0
        self.ratios.setdefault(at.step, []).append(grown)
        state["added"] = added
        return None


METHODS: Mapping[str, Any] = {"first_block": FirstBlock, "taylorseer": TaylorSeer, "mag": Mag}
