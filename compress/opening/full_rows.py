"""Calibration texts as rows of one length, one text behind the other: for what takes no rows of different lengths."""

from __future__ import annotations

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.context import Context
from compress.errors import DataError
from compress.opening.rows import open_tokenizer, tokens_of
from compress.tokenizers.vocabulary import embeddings, positions


def full_rows(artifact: Artifact, samples: int, length: int, context: Context) -> list[list[int]]:
    """As many rows of `length` tokens as the calibration documents fill, or of as many as the model has positions for; at most `samples`.
    No more documents are read than fill them.

    Raises:
        DataError: they do not fill one, or one has a token that the model has no embedding for.
        ModelError: no tokenizer loads.
    """
    tokenizer = open_tokenizer(artifact, context.opening)
    config, data = artifact.known_config(LANGUAGE_MODEL), context.data["calibration"]
    most = positions(config) or samples * length
    length, known, stream = min(length, most), embeddings(config), list[int]()
    for item in data.each():
        stream += tokens_of(tokenizer, item, most, known)
        context.tell("calibration tokens", min(len(stream), samples * length), samples * length)
        if len(stream) >= samples * length:
            break
    count = min(samples, len(stream) // length)
    if not count:
        message = f"{len(stream)} tokens do not fill a row of {length}"
        raise DataError(message, place=data.source, fix="lower `length`, or give more calibration documents")
    return [stream[row * length : (row + 1) * length] for row in range(count)]
