"""Share of the digits asked for that have the ink asked for, in the place asked for.

Only for captions in the grammar of `zoo://digits`, and where an item's text is an instruction, for such a caption of what follows it; the classifier
was trained on scans that no test scene holds.
"""

from __future__ import annotations

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class InksRight(Params):
    """Nothing to set."""


@metric(
    version=2,
    title="inks right",
    params=InksRight,
    needs=("images", "scenes"),
    better="higher",
    ends=(0, 1),
    statistic=statistics.SHARE,
)
def measure(evidence: Evidence, params: InksRight) -> Sample:
    from compress.zoo.digit_classifier import share_read

    return share_read(evidence, "inks")
