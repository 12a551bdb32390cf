"""Seconds until a fresh process has made its first call: libraries imported, model loaded, engine compiled, call made.

The file system's cache is warm, as on a machine that has run the model before. One start a unit, the sides taking turns.
"""

from __future__ import annotations

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class ColdStart(Params):
    """Nothing to set; `evaluate.starts` says how many processes a side."""


@metric(
    version=1,
    title="cold start",
    params=ColdStart,
    needs=("starts",),
    better="lower",
    statistic=statistics.RESOURCE,
    unit="s",
)
def measure(evidence: Evidence, params: ColdStart) -> Sample:
    if not evidence.starts:
        raise ValueError("no process was started")
    seconds = np.array([start.seconds for start in evidence.starts])
    return Sample(tuple(map(str, range(len(seconds)))), seconds, protocol={"counts": "import, load and first call"})
