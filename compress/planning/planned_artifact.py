"""What a stage will leave, as an artifact that is not there yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compress.artifact import Artifact, Provenance
from compress.catalogue import Forecast, Stage
from compress.params import Params


def expected_of(
    artifact: Artifact, stage: Stage, params: Params, touched: tuple[str, ...], forecast: Forecast
) -> Artifact:
    """What a stage will leave, with its input's path; its lineage says what it will have been through, under no key yet."""
    expected = artifact.replacing({name: stage.leaves(artifact.components[name].format) for name in touched})
    settings, planned = forecast.settings or artifact.settings, {**artifact.planned, **forecast.configs}
    lineage = (*artifact.lineage, Provenance(stage.name, stage.version, params.counted(), ""))
    made = expected.packing(forecast.quantization).becoming(forecast.kinds)
    return replace(made, settings=settings, planned=planned, lineage=lineage)


def different(first: Artifact, others: Iterable[Artifact]) -> list[Artifact]:
    """Those of the others that differ from the first, and from each other, in more than how they were made."""
    found, known = [], [replace(first, lineage=())]
    for one in others:
        if (plain := replace(one, lineage=())) not in known:
            known.append(plain)
            found.append(one)
    return found
