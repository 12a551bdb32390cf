"""How many tokens the model writes before it ends its text, its last one counted, up to `evaluate.new_tokens`.

A model that answers shorter is faster in requests per second and no faster a token, so a change either way is suspect and the
gate is two-sided.
"""

from __future__ import annotations

import numpy as np

from compress.errors import UserError
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class TokensWritten(Params):
    """Nothing to set; `evaluate.continuations` and `evaluate.new_tokens` say how many prompts, and how long."""


@metric(
    version=1,
    title="tokens written",
    params=TokensWritten,
    needs=("completions",),
    better="same",
    statistic=statistics.MEAN,
    unit="tokens",
)
def measure(evidence: Evidence, params: TokensWritten) -> Sample:
    # The end counts as one, so that only an empty prompt, which is not continued, has none.
    written = [
        (unit, len(c.tokens)) for unit, c in zip(evidence.unit_ids, evidence.continuations, strict=False) if c.tokens
    ]
    counts = np.array([count for _, count in written], dtype=np.float64)
    if not len(counts):
        raise UserError("no prompt was continued", fix="set evaluate: {continuations: 32}, or drop tokens_written")
    cut = int((counts >= evidence.written).sum()) if evidence.written else 0
    # Where both sides run into the limit, they are equal because of it.
    note = f"{cut} of {len(counts)} stopped by the limit of {evidence.written}" if cut else ""
    ids = tuple(unit for unit, _ in written)
    return Sample(ids, counts, protocol={"new_tokens": evidence.written}, note=note)
