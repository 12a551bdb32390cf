"""Several images of one prompt, each from its own noise: made of a data set's items, and put together again, for the prompt is the
unit. Images of one prompt are alike, so an interval that took them for independent would claim too much.

What scores each image alone is averaged over a prompt's images. What judges images as a set judges, noise by noise, the set of
one image a prompt, and is averaged over the noises: so the number means what it does for one image a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from compress.data.items import Item
from evaluation.distances.image_sets import Floats, Linear, paired
from evaluation.evidence import Evidence
from evaluation.metrics import Metric, P
from evaluation.values import Sample

EACH = "images_per_prompt"  # in a protocol, where there is more than one: the rows of a unit


def repeated(items: Sequence[Item], each: int) -> tuple[Item, ...]:
    """Every item so many times, one behind the other; the first keeps its id, and with it the noise it has alone. No two have one id."""
    taken = {item.id for item in items}

    def named(item: Item, n: int) -> str:
        name = f"{item.id}#{n}"
        while name in taken:
            name += "'"
        taken.add(name)
        return name

    return tuple(replace(item, id=named(item, n + 1)) if n else item for item in items for n in range(each))


def measured(metric: Metric[P], evidence: Evidence, params: P) -> Sample:
    """What a metric makes of a side, unit by unit: a score of each image becomes one of each prompt."""
    found = metric.measure(evidence, params)
    if evidence.each == 1 or len(found.values) != len(evidence.items) or found.values.ndim != 1:
        return found
    values = found.values.reshape(-1, evidence.each).mean(axis=1)
    return replace(found, values=values, protocol={**found.protocol, EACH: evidence.each})


def noises(sample: Sample) -> tuple[Sample, ...]:
    """A sample of generated images as a set, noise by noise: one image of each prompt."""
    each = int(sample.protocol.get(EACH, 1))
    if each == 1:
        return (sample,)
    protocol = {name: value for name, value in sample.protocol.items() if name != EACH}
    of_items = sample.reference if sample.reference is not None and paired(sample) else None
    return tuple(
        replace(
            sample,
            values=sample.values[start::each],
            reference=sample.reference if of_items is None else of_items[start::each],
            protocol=protocol,
        )
        for start in range(each)
    )


def units_of(sample: Sample) -> int:
    """How many prompts a sample's images are of."""
    return len(sample.values) // int(sample.protocol.get(EACH, 1))


def over_noises(linear: Callable[[Sample], Linear], sample: Sample) -> Linear:
    """The mean of a statistic over the noises, with how it moves with each prompt."""
    return Linear.mean([linear(one) for one in noises(sample)])


def units_over_noises(units: Callable[[Sample], Floats], sample: Sample) -> Floats:
    """The mean of each unit's number over the noises, [n]."""
    found: Floats = np.mean([units(one) for one in noises(sample)], axis=0)
    return found
