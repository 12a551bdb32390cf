"""A metric's line in a comparison."""

from __future__ import annotations

from collections.abc import Mapping

from compress.errors import StageFailed
from compress.params import Params
from compress.recipe.gates import Gate
from evaluation.comparison import Row
from evaluation.metrics import Metric
from evaluation.values import Estimate, Sample
from evaluation.verdict.gates import judge


def row_of(
    metric: Metric[Params],
    found: tuple[Sample, Sample],
    protocol: Mapping[str, str | int | float],
    gate: Gate | None,
    noise: Estimate | None = None,
) -> Row:
    """A metric's line, from the samples of baseline and candidate.

    Raises:
        StageFailed: they were scored by different protocols.
    """
    base, candidate = found
    if metric.quality and base.protocol != candidate.protocol:
        raise StageFailed(
            f"{metric.name}: the two sides were scored by different protocols, {dict(base.protocol)} and {dict(candidate.protocol)}",
            fix="score both with the same extractor",
        )
    contrast, scores = metric.contrast(candidate, base), (metric.score(base), metric.score(candidate))
    extractor = base.protocol.get("features", "")
    return Row(
        metric=metric.name,
        title=f"{metric.title}, {extractor} features" if extractor else metric.title,
        unit=metric.unit,
        better=metric.better,
        compared=metric.compared,
        baseline=scores[0],
        candidate=scores[1],
        contrast=contrast,
        verdict=judge(gate, metric, scores[0], contrast, noise, candidate=scores[1]),
        noise=noise,
        gate=gate,
        protocol={**protocol, **base.protocol, "version": metric.version},
    )
