"""How far a greedy continuation goes the original's own way: the share of its tokens before the first that differs.

A prompt is the start of a document, or a conversation up to its last answer. Of the longer one's length, so that stopping early counts as parting. One token that tips over changes all behind it, which is
why this moves long before a task's score does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compress.errors import UserError
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TokenAgreement(Params):
    """Nothing to set; `evaluate.continuations` and `evaluate.new_tokens` say how many prompts, and how long."""


@metric(
    version=2,
    title="token agreement",
    params=TokenAgreement,
    needs=("completions",),
    better="higher",
    ends=(0, 1),
    statistic=statistics.MEAN,
    own=True,
)
def measure(evidence: Evidence, params: TokenAgreement) -> Sample:
    from evaluation.evidence import parting

    original = evidence.original or evidence
    both = zip(original.continuations, evidence.continuations, strict=True)
    message = zip(evidence.unit_ids, both, strict=False)
    # An empty prompt is not continued, and two that wrote nothing do not agree on anything. What the original alone wrote nothing to
    # stays among its own, for the other side may have.
    alone = evidence.original is None
    found = {
        unit: (one.tokens, other.tokens)
        for unit, (one, other) in message
        if one.tokens or other.tokens or (alone and one.prompt)
    }
    ids, pairs = tuple(found), list(found.values())
    if not found:
        raise UserError("no prompt was continued", fix="set evaluate: {continuations: 32}, or drop token_agreement")
    if alone:
        return Sample(ids, np.ones(len(ids)), protocol={"new_tokens": evidence.written})
    longest = np.array([max(len(one), len(other)) for one, other in pairs])
    parted = np.array([parting(one, other) for one, other in pairs])
    shares = np.where(parted < 0, 1.0, parted / np.maximum(longest, 1))
    return Sample(ids, shares, protocol={"new_tokens": evidence.written}, note=_note(parted, int(longest.max())))


def _note(parted: NDArray[np.int64], longest: int) -> str:
    """In words where they part, `parted` being −1 where they never do."""
    apart = parted[parted >= 0]
    agree = f"{len(parted) - len(apart)} of {len(parted)} agree to the end"
    return f"median first divergent token {np.median(apart):.0f} of {longest}; {agree}" if len(apart) else agree
