"""Texts with a token that the model has no embedding for: one clear error in place of an IndexError out of a library. A tokenizer may
have such tokens, as Gemma 3's has one for images: most texts never have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.artifact import Artifact
from compress.errors import DataError
from compress.tokenizers.vocabulary import embeddings

SHOWN = 60  # characters of a text
FIX = "leave the text out, or save the model with its embeddings resized to the tokenizer's length"


def be_known(known: int | None, tokenizer: Any, text: str, tokens: Sequence[int], whose: str = "the model") -> None:
    """Refuse a text that was cut into tokens beyond the embeddings of what reads them.

    Args:
        known: how many embeddings that has; None where nobody knows.

    Raises:
        DataError: it has such a token.
    """
    if known is None or max(tokens, default=-1) < known:
        return
    number = next(token for token in tokens if token >= known)
    token = tokenizer.convert_ids_to_tokens(number)
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    message = (
        f"the text {shown!r} has the token {token!r} ({number}), and {whose} has embeddings for {known} (vocab_size)"
    )
    raise DataError(message, fix=FIX)


@dataclass(frozen=True)
class Larger:
    """A tokenizer with more tokens than its text encoder `reads` has embeddings for, `known`."""

    tokenizer: Any
    reads: str
    known: int


def larger_tokenizers(artifact: Artifact, pipeline: Any) -> tuple[Larger, ...]:
    """Those of a pipeline: looked for once, for it reads files."""
    found = []
    for name in (n for n in pipeline.components if n.startswith("tokenizer")):
        tokenizer, reads = getattr(pipeline, name), name.replace("tokenizer", "text_encoder", 1)
        if tokenizer is None or reads not in artifact.components:
            continue
        known = embeddings(artifact.known_config(reads))
        found += [Larger(tokenizer, reads, known)] if known is not None and len(tokenizer) > known else []
    return tuple(found)


def captions_known(larger: Iterable[Larger], captions: Sequence[str]) -> None:
    """As `be_known`, for all that a pipeline's tokenizers read.

    Raises:
        DataError: a caption has such a token.
    """
    for one in larger:
        for text in captions:
            tokens = one.tokenizer(text, verbose=False)["input_ids"]
            be_known(one.known, one.tokenizer, text, tokens, f"`{one.reads}`")
