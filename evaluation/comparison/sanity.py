"""Whether a model fits the texts that it is measured on: one that knows less of them than who guesses says nothing of what a stage cost."""

from __future__ import annotations

import math

import numpy as np

from compress.artifact import LANGUAGE_MODEL
from compress.tokenizers.vocabulary import embeddings
from evaluation.evidence import Evidence


def worse_than_guessing(evidence: Evidence) -> str:
    """That a model gives its texts less probability than who guesses among all tokens evenly, in words; "" where it gives more,
    or there are no texts. Whose tokens are all as likely has a perplexity of as many as there are."""
    words = embeddings(evidence.artifact.known_config(LANGUAGE_MODEL)) if evidence.artifact.writes_text else None
    scored = [tokens for tokens in evidence.token_logprobs if len(tokens)]
    if not words or not scored:
        return ""
    nats = -float(np.concatenate(scored).mean())
    if nats <= math.log(words):
        return ""
    return (
        f"its perplexity on these texts, {math.exp(min(nats, 700)):.4g}, is above the {words} tokens that it chooses from, which"
        " guessing evenly gives: the model does not fit the data (another tokenizer, language or format, or weights that were"
        " never trained), so no difference between the sides says what a stage costs"
    )
