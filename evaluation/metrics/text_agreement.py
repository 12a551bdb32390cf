"""How far a greedy continuation goes the original's own way, read as text: the share of its characters before the first that differs.

As `token_agreement`, for models whose tokens are not known or not the same: another tokenizer, or an endpoint that answers with text alone. Of
the longer one's length, so that stopping early counts as parting.
"""

from __future__ import annotations

import numpy as np

from compress.errors import UserError
from compress.params import Params
from evaluation.evidence import Evidence, parting
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class TextAgreement(Params):
    """Nothing to set; `evaluate.continuations` and `evaluate.new_tokens` say how many prompts, and how long."""


@metric(
    version=2,
    title="text agreement",
    params=TextAgreement,
    needs=("continuations",),
    better="higher",
    ends=(0, 1),
    statistic=statistics.MEAN,
    own=True,
)
def measure(evidence: Evidence, params: TextAgreement) -> Sample:
    original = evidence.original or evidence
    both = zip(original.continuations, evidence.continuations, strict=True)
    # An empty prompt is not continued, and two that wrote nothing do not agree on anything. What the original alone wrote nothing to
    # stays among its own, for the other side may have.
    alone = evidence.original is None
    found = {
        unit: (a.text, b.text)
        for unit, (a, b) in zip(evidence.unit_ids, both, strict=False)
        if a.text or b.text or (alone and a.prompt)
    }
    if not found:
        raise UserError(
            "no prompt was continued by either side", fix="set evaluate: {continuations: 32}, or drop text_agreement"
        )
    parted = {unit: parting(one, other) for unit, (one, other) in found.items()}
    shares = [1.0 if at < 0 else at / max(map(len, found[unit])) for unit, at in parted.items()]
    protocol: dict[str, str | int | float] = {"new_tokens": evidence.written}
    if alone:
        return Sample(tuple(found), np.array(shares), protocol=protocol)
    agree = sum(at < 0 for at in parted.values())
    return Sample(tuple(found), np.array(shares), protocol=protocol, note=f"{agree} of {len(found)} agree to the end")
