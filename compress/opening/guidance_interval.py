"""Guidance within some of the steps alone: outside, the pass without a prompt is not computed, and a pipeline is given the other's answer for
both, so that what it steers towards is what it already has.

A pipeline calls its denoiser on both halves of a batch at once (`halves`: first without a prompt, then with it), on thirds (`thirds`: with the
prompt and the image that is edited, with the image alone, with neither) or twice in a step (`passes`: first with the prompt). Each time its own
loop runs, and `u + s (c - u)` with `u = c` is `c`, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compress.opening.denoising import At, Call, Counted, rows_of

PARTS = {"halves": (2, 1), "thirds": (3, 0)}  # of a batch, and which of them has all that the pipeline is asked with


class Interval:
    """Leaves the pass without a prompt out at steps before `start` and from `stop` on, both shares of the steps."""

    def __init__(self, start: float, stop: float, how: str, counted: Counted) -> None:
        self.start, self.stop, self.how, self.counted = start, stop, how, counted

    def run(self, compute: Callable[[Call], Any], call: Call, at: At) -> Any:
        if self.start * at.steps <= at.step < self.stop * at.steps:
            return compute(call)
        if self.how in PARTS:
            return self._one_part(compute, call, at, *PARTS[self.how])
        if at.part == 0:
            at.kept = compute(call)
            return at.kept
        self.counted.unguided += rows_of(call)
        return _copied(at.kept)

    def _one_part(self, compute: Callable[[Call], Any], call: Call, at: At, parts: int, which: int) -> Any:
        rows = rows_of(call)
        if at.part or rows % parts or not at.guided():  # SD3 calls once more, without some layers, where it is asked to
            return compute(call)
        share = rows // parts
        self.counted.unguided += rows - share
        kept = slice(which * share, (which + 1) * share)
        found = compute({name: _rows(value, rows, kept) for name, value in call.items()})
        return _mapped(found, lambda value: torch.cat([value] * parts))


def _rows(value: Any, rows: int, kept: slice) -> Any:
    """Some rows of all that has as many rows as the latent."""
    if isinstance(value, torch.Tensor):
        return value[kept] if value.dim() and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _rows(one, rows, kept) for name, one in value.items()}
    return type(value)(_rows(one, rows, kept) for one in value) if type(value) in (list, tuple) else value


def _copied(given: Any) -> Any:
    """An answer that may be written into without a change of the first."""
    return _mapped(given, torch.clone)


def _mapped(given: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A denoiser's answer, a tuple or a record of tensors, with each of them otherwise."""
    if isinstance(given, tuple):
        return tuple(map(function, given))
    return type(given)(**{name: function(value) for name, value in given.items()})
