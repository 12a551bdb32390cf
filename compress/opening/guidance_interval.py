"""Guidance within some of the steps alone: outside, the pass without a prompt is not computed, and a pipeline is given the other's answer for
both, so that what it steers towards is what it already has.

A pipeline calls its denoiser on both halves of a batch at once (`halves`: first without a prompt, then with it) or twice in a step (`passes`:
first with the prompt). Either way its own loop runs, and `u + s (c - u)` with `u = c` is `c`, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compress.opening.denoising import At, Call, Counted, rows_of


class Interval:
    """Leaves the pass without a prompt out at steps before `start` and from `stop` on, both shares of the steps."""

    def __init__(self, start: float, stop: float, how: str, counted: Counted) -> None:
        self.start, self.stop, self.how, self.counted = start, stop, how, counted

    def run(self, compute: Callable[[Call], Any], call: Call, at: At) -> Any:
        if self.start * at.steps <= at.step < self.stop * at.steps:
            return compute(call)
        if self.how == "halves":
            return self._halved(compute, call, at)
        if at.part == 0:
            at.kept = compute(call)
            return at.kept
        self.counted.unguided += rows_of(call)
        return _copied(at.kept)

    def _halved(self, compute: Callable[[Call], Any], call: Call, at: At) -> Any:
        rows = rows_of(call)
        if at.part or rows % 2 or not at.guided():  # SD3 calls once more, without some layers, where it is asked to
            return compute(call)
        self.counted.unguided += rows // 2
        return _mapped(compute({name: _half(value, rows) for name, value in call.items()}), _doubled)


def _half(value: Any, rows: int) -> Any:
    """The second half of all that has as many rows as the latent."""
    if isinstance(value, torch.Tensor):
        return value[rows // 2 :] if value.dim() and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _half(one, rows) for name, one in value.items()}
    return type(value)(_half(one, rows) for one in value) if type(value) in (list, tuple) else value


def _doubled(value: torch.Tensor) -> torch.Tensor:
    return torch.cat([value, value])


def _copied(given: Any) -> Any:
    """An answer that may be written into without a change of the first."""
    return _mapped(given, torch.clone)


def _mapped(given: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A denoiser's answer, a tuple or a record of tensors, with each of them otherwise."""
    if isinstance(given, tuple):
        return tuple(map(function, given))
    return type(given)(**{name: function(value) for name, value in given.items()})
