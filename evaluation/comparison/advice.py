"""What to raise so that a gate left open is decided: the setting by its name, and never more than there is to measure on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from compress.params import Params
from compress.tasks import OF_ITEMS, WRITTEN
from compress.tasks.text_generation import Writing
from evaluation.comparison import Row
from evaluation.metrics import Metric

if TYPE_CHECKING:
    from evaluation.comparison.sides import Request


def advised(row: Row, metric: Metric[Params], request: Request, seen: int, held: int) -> Row:
    """The row, its verdict with the setting that would decide it.

    Args:
        seen: the items that both sides were run on.
        held: the items that the data hold; -1: as many as wanted.
    """
    verdict = row.verdict
    if not verdict.n_needed or not row.contrast.n:
        return row
    share = verdict.n_needed / row.contrast.n
    return replace(row, verdict=replace(verdict, setting=_setting(metric, request, share, seen, held)))


def _setting(metric: Metric[Params], request: Request, share: float, seen: int, held: int) -> str:
    """The setting and its value, where `share` times as many units are needed; "" where no setting says how many there are."""
    spec, by_hand = request.spec, not request.recipe_text
    if metric.timed:
        return f"evaluate.timing_blocks: {math.ceil(spec.timing_blocks * share)}" + " in a recipe" * by_hand
    if "starts" in metric.needs:
        return f"evaluate.starts: {math.ceil(spec.starts * share)}" + " in a recipe" * by_hand
    if not metric.needs & OF_ITEMS or not seen:
        return ""
    if metric.needs & WRITTEN and not by_hand:
        return _continued(math.ceil(spec.of(Writing).continuations * share), seen, held)
    wanted = math.ceil(seen * share)
    if 0 <= held < wanted:
        return f"the evaluation data hold {held}, so give more" + (
            "" if held == seen else f", or all of them, {_samples(held, by_hand)}"
        )
    return _samples(wanted, by_hand)


def _continued(wanted: int, seen: int, held: int) -> str:
    """Of what is seen of continuations alone, of which there are no more than samples."""
    if 0 <= held < wanted:
        return f"the evaluation data hold {held}, so give more, and evaluate.continuations: {wanted}"
    return f"evaluate.continuations: {wanted}" + (f", with evaluate.samples: {wanted}" if wanted > seen else "")


def _samples(count: int, by_hand: bool) -> str:
    return f"--samples {count}" if by_hand else f"evaluate.samples: {count}"
