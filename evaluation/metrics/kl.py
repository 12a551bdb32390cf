"""How differently the model continues held-out text from the original: mean KL(original ‖ candidate) of a token, in nats.

Over the whole vocabulary at every position, so it sees what no single token's probability shows: 0 is the same model. Softmax in
float32; both models read the original's tokens, of a conversation those of the assistant count, and interval and comparison resample whole documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.errors import StageFailed
from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.metrics.perplexity import scored
from evaluation.values import Estimate, Sample, Statistic
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compress.data.items import Item
    from compress.opening.models import LanguageModel
    from compress.tokenizers.chats import Reading


class Kl(Params):
    """Nothing to set."""


def _rate(sample: Sample, draw: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nats a token of resampled documents [rounds, n]; 0 where none of them holds a token."""
    nats, tokens = sample.values.T
    found: NDArray[np.float64] = nats[draw].sum(axis=1) / np.maximum(tokens[draw].sum(axis=1), 1)
    return found


def score(sample: Sample) -> Estimate:
    count = len(sample.values)
    if not count:
        return statistics.too_few(0.0, 0)
    value = float(_rate(sample, np.arange(count)[None])[0])
    return statistics.bootstrap(lambda draw: _rate(sample, draw), count, value)


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    def difference(draw: NDArray[np.int64]) -> NDArray[np.float64]:
        return _rate(candidate, draw) - _rate(baseline, draw)

    count = len(candidate.values)
    if not count:
        return statistics.too_few(0.0, 0)
    return statistics.bootstrap(difference, count, float(difference(np.arange(count)[None])[0]))


@metric(
    version=1,
    title="KL divergence",
    params=Kl,
    needs=("documents", "language_model"),
    better="lower",
    ends=(0, math.inf),
    statistic=Statistic("difference", score, contrast, units=lambda s: s.values[:, 0] / np.maximum(s.values[:, 1], 1)),
    unit="nats",
    own=True,
)
def measure(evidence: Evidence, params: Kl) -> Sample:
    protocol = {"softmax": "float32", "direction": "original to candidate", **evidence.counted}
    if evidence.original is None:
        nothing = [(0.0, len(tokens)) for tokens in evidence.token_logprobs]
        return scored(Sample(evidence.unit_ids, np.array(nothing, dtype=np.float64).reshape(-1, 2), protocol=protocol))
    from compress.opening import open_language

    original, candidate = (open_language(side.artifact, side.opening) for side in (evidence.original, evidence))
    rows = divergences(original, candidate, evidence.items, evidence.batch)
    for item, (nats, _) in zip(evidence.items, rows, strict=True):
        if not np.isfinite(nats):
            raise StageFailed(
                "the candidate gives no probability to what the original expects, or one that is no number",
                place=item.id,
                fix="look at the last stage, or drop kl",
            )
    return scored(Sample(evidence.unit_ids, rows, protocol=protocol))


def divergences(
    original: LanguageModel, candidate: LanguageModel, items: Sequence[Item | str], most_rows: int = 16
) -> NDArray[np.float64]:
    """Of each text the sum over its tokens of KL(original ‖ candidate), nats, and how many tokens: [n, 2]. Of a conversation, over the
    assistant's tokens.

    Args:
        original, candidate: both open at a time; a text is cut to the shorter reach.
        most_rows: texts that are read in one call.

    Raises:
        StageFailed: their vocabularies differ in size.
    """
    most = min(original.max_tokens, candidate.max_tokens)
    documents = [original.read(item).cut(most) for item in items]
    rows = np.array([(0.0, len(document.scored)) for document in documents])
    for batch in original.batches([len(document.tokens) for document in documents], most_rows):
        if spoken := [i for i in batch if rows[i, 1]]:
            rows[spoken, 0] = _batch(original, candidate, [documents[i] for i in spoken])
    return rows


def _batch(original: LanguageModel, candidate: LanguageModel, documents: list[Reading]) -> list[float]:
    """Nats of each document, all of them read in one call of each model."""
    tokens = [document.tokens for document in documents]
    expected, given = original.logits(tokens), candidate.logits(tokens)
    if expected.shape[-1] != given.shape[-1]:
        raise StageFailed(
            f"the original tells {expected.shape[-1]} tokens apart and the candidate {given.shape[-1]}",
            fix="drop kl: it compares models of one vocabulary",
        )
    found = []
    for row, document in enumerate(documents):
        # The last position foretells a token that the text does not have.
        p, q = (logits[row, : len(document.tokens) - 1] for logits in (expected, given))
        if document.counted is not None:
            p, q = (side[[at - 1 for at in document.scored]] for side in (p, q))
        p, q = (side.float().log_softmax(-1) for side in (p, q))
        found.append(float((p.exp() * (p - q)).sum(-1).double().sum()))
    return found
