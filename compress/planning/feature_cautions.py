"""Extractors of features that know other images than those they are given."""

from __future__ import annotations

from collections.abc import Iterator

from compress.catalogue import find_metric
from compress.data.items import Data
from compress.recipe.values import EvalSpec

ZOO = "zoo://digits-clip"  # trained on the zoo's scenes of digits alone
FEATURES = "features"


def foreign_features(data: Data, spec: EvalSpec) -> Iterator[str]:
    """That metrics look at images of other things than the zoo's digits through the zoo's extractor, named or by default: they get
    numbers, which say nothing."""
    if data.kind == "texts" or "scenes" in data.gives:
        return
    blind = [name for name, given in spec.metrics.items() if _extractor(name, given.get(FEATURES)) == ZOO]
    if blind:
        message = f"{', '.join(blind)} look{'s' * (len(blind) == 1)} through {ZOO}, which knows the zoo's scenes of digits alone"
        yield f"{message}, and {data.source} shows others: give a folder of a CLIP model as `features`"


def _extractor(metric: str, given: object) -> object:
    """What a metric looks through: as it is given, or by default; None of one that looks through nothing."""
    field = find_metric(metric).params.model_fields.get(FEATURES)
    return None if field is None else given or field.default
