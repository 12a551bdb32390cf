"""Captions that are longer than a pipeline reads: counted once for all of them, where its library warns of each on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from compress.distillation.conditioning import LENGTH
from compress.pipelines.call_arguments import call_arguments

# What libraries say of every call: what is cut is counted once for all; both sides of a comparison are given their captions as they are
# written, whether a package that cleans them is installed or not; and a VAE that a pipeline itself casts is its own affair.
KNOWN = (
    "was truncated because",
    "Token indices sequence length is longer",
    "clean_caption",
    "should be kept in float32",
)
LIBRARIES = ("transformers.tokenization_utils_base", "diffusers.models.modeling_utils")


def cut_short(pipeline: Any, captions: Sequence[str], call: Mapping[str, Any]) -> str:
    """How many captions each tokenizer cuts, in words; "" where none."""
    message = []
    for name in sorted(n for n in pipeline.components if n.startswith("tokenizer")):
        tokenizer = getattr(pipeline, name)
        if tokenizer is None or not (limit := _limit(pipeline, tokenizer, call)):
            continue
        count = sum(len(tokenizer(text, verbose=False)["input_ids"]) > limit for text in captions)
        message += [f"`{name}` reads {limit} tokens and cuts {count} of {len(captions)} captions"] if count else []
    return "; ".join(message)


def _limit(pipeline: Any, tokenizer: Any, call: Mapping[str, Any]) -> int:
    """The tokens that a tokenizer's texts are cut to; 0 where nobody knows."""
    usual = (call_arguments(type(pipeline).__name__) or {}).get(LENGTH)
    stated = None if "CLIP" in type(tokenizer).__name__ else call.get(LENGTH, usual)
    limit = stated if isinstance(stated, int) else tokenizer.model_max_length
    return limit if limit < 10**6 else 0


@contextmanager
def uncounted(pipeline: Any) -> Iterator[None]:
    """Within it neither the pipeline's class nor what it calls warns of each call again."""
    loggers = [logging.getLogger(name) for name in (type(pipeline).__module__, *LIBRARIES)]

    def others(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(sentence in message for sentence in KNOWN)

    for logger in loggers:
        logger.addFilter(others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(others)
