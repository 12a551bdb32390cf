"""What a reader should see: images of both sides, continuations that part, and the items that came out worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.catalogue import find_metric
from evaluation.comparison import Completion, Image, Row, Worst
from evaluation.evidence import Continuation, Evidence, parting
from evaluation.observe.given_images import input_of, mask_of
from evaluation.values import Sample

FIRST, WORST, COMPLETIONS, ITEMS = 6, 6, 6, 5
Sides = tuple[Evidence, Evidence]
Measured = Mapping[str, tuple[Sample, Sample]]


def grid(sides: Sides, rows: Sequence[Row], measured: Measured) -> tuple[Image, ...]:
    """The first prompts, which nobody chose, and those that came out worst by the first metric that scores each alone."""
    one, other = sides
    if one.image is None or other.image is None:
        return ()
    chosen = dict.fromkeys(range(min(FIRST, len(one.items))), "")
    at = {item.id: index for index, item in enumerate(one.items)}
    for row, losses in _losses(rows, measured)[:1]:
        for index in np.argsort(-losses, kind="stable")[:WORST]:
            if losses[index] > 0:
                unit = measured[row.metric][0].unit_ids[index]
                chosen.setdefault(at[unit], f"among the worst by {row.title}")
    return tuple(_shown(one, other, index, why) for index, why in chosen.items())


def _shown(one: Evidence, other: Evidence, index: int, why: str) -> Image:
    """An item as both sides show it, with what they were given at the size of what the first makes of it."""
    item, given = one.items[index], dict[str, NDArray[np.uint8]]()
    made, beside = (side.images(index, index + 1)[0] for side in (one, other))
    if item.input is not None:
        given["input"] = input_of(one, index, made)
    if item.mask is not None:
        given["mask"] = np.repeat(mask_of(one, index, made)[..., None], 3, axis=2).astype(np.uint8) * 255
    return Image(item.id, item.text, made, beside, why, given)


def completions(sides: Sides) -> tuple[Completion, ...]:
    """Continuations of both sides, those that part first in front."""
    pairs = zip(sides[0].items, sides[0].continuations, sides[1].continuations, strict=False)
    found = [
        Completion(item.id, one.prompt, one.text, other.text, parting(*_parts(one, other)))
        for item, one, other in pairs
    ]
    found.sort(key=lambda c: c.first_divergent_token if c.first_divergent_token >= 0 else np.inf)
    return tuple(found[:COMPLETIONS])


def _parts(one: Continuation, other: Continuation) -> tuple[Sequence[object], Sequence[object]]:
    """The tokens of two continuations; their words, where those of one are not known."""
    known = (one.tokens or not one.text) and (other.tokens or not other.text)
    return (one.tokens, other.tokens) if known else (one.text.split(), other.text.split())


def worst(sides: Sides, rows: Sequence[Row], measured: Measured) -> tuple[Worst, ...]:
    """For each metric that scores items one by one, those that lost most from the baseline to the candidate."""
    return worst_of(rows, measured, {item.id: item.text for item in sides[0].items})


def worst_of(rows: Sequence[Row], measured: Measured, texts: Mapping[str, str]) -> tuple[Worst, ...]:
    """As `worst`, where the items are no longer available.

    Args:
        texts: of the items, by id, as far as they are known.
    """
    found = []
    for row, losses in _losses(rows, measured):
        ids = measured[row.metric][0].unit_ids
        base, candidate = (_units(row, sample) for sample in measured[row.metric])
        for index in np.argsort(-losses, kind="stable")[:ITEMS]:
            unit = ids[index]
            if losses[index] > 0:
                values = float(base[index]), float(candidate[index])
                found.append(Worst(row.metric, unit, texts.get(unit, ""), *values))
    return tuple(found)


def _losses(rows: Sequence[Row], measured: Measured) -> list[tuple[Row, NDArray[Any]]]:
    """How much worse each item came out, for the metrics that can say; gated ones first."""
    found = []
    for row in sorted((r for r in rows if r.metric in measured), key=lambda r: r.verdict.status == "not gated"):
        base, candidate = (_units(row, sample) for sample in measured[row.metric])
        if row.compared == "difference" and base.ndim == 1 and len(base) > 1 and base.shape == candidate.shape:
            found.append((row, candidate - base if row.better == "lower" else base - candidate))
    return found


def _units(row: Row, sample: Sample) -> NDArray[Any]:
    found: NDArray[Any] = find_metric(row.metric).statistic.units(sample)
    return found
