"""Share of the digits asked for that an independent classifier reads in the place asked for.

Only for captions in the grammar of `zoo://digits`; the classifier was trained on scans that no test scene holds.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Metric, Sample


class DigitsRead(Params):
    """Nothing to set."""


def measure(evidence: Evidence, params: DigitsRead) -> Sample:
    from compress.zoo.reader import marks_of

    return Sample(
        evidence.unit_ids, np.asarray(marks_of(evidence)[0], dtype=np.float64), protocol={"reader": "digits-reader"}
    )


def score(sample: Sample, params: DigitsRead) -> Estimate:
    return statistics.mean(sample.values)


def contrast(candidate: Sample, baseline: Sample, params: DigitsRead) -> Estimate:
    return statistics.share_difference(candidate.values, baseline.values)


METRIC: Final = Metric(
    version=2,
    title="digits read",
    params=DigitsRead,
    tasks=frozenset({"text_to_image"}),
    needs="images",
    better="higher",
    unit="",
    compared="difference",
    measure=measure,
    score=score,
    contrast=contrast,
    name=__name__.rsplit(".", 1)[1],
    doc=__doc__ or "",
)
