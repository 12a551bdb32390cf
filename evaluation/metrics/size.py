"""Bytes of the weights on disk that running the model reads, in MB: every component of the pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from compress.artifact import Artifact
from compress.catalogue import find_engine
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class Size(Params):
    """Nothing to set."""


@metric(
    version=3,
    title="size on disk",
    params=Size,
    needs=("files",),
    better="lower",
    statistic=statistics.EXACT,
    unit="MB",
)
def measure(evidence: Evidence, params: Size) -> Sample:
    total = sum(f.stat().st_size for f in weights_read(evidence.artifact))
    return Sample(("disk",), np.array([total / 1e6]), protocol={"counts": "weight files on disk"})


def weights_read(artifact: Artifact, components: Iterable[str] | None = None) -> tuple[Path, ...]:
    """The weight files that running these components reads, each once; None: all of them."""
    parts = {n: artifact.components[n] for n in (artifact.components if components is None else components)}
    found = {f for name, part in parts.items() for f in find_engine(part.format).reads(artifact.folder(name))}
    return tuple(sorted(found))
