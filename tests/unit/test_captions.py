"""What libraries say of each call again is not stated, and nothing else is lost."""

from __future__ import annotations

import logging

import pytest

from compress.opening.captions import LIBRARIES, uncounted

KNOWN = (
    "Token indices sequence length is longer than the specified maximum sequence length for this model (30 > 16).",
    "Setting `clean_caption` to False...",
    "There are modules in AutoencoderKL that should be kept in float32: ['conv'].",
    "The following part of your input was truncated because CLIP can only handle sequences up to 77 tokens: x",
)


class Pipeline:
    """Whose own module speaks under this one's name."""


@pytest.mark.parametrize("name", [__name__, *LIBRARIES])
def test_only_what_is_known_is_kept_back(name: str) -> None:
    logger = logging.getLogger(name)
    recorded: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: recorded.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(listener)
    try:
        with uncounted(Pipeline()):
            for message in (*KNOWN, "the weights are upside down"):
                logger.error(message)
        assert recorded == ["the weights are upside down"]
        logger.error(KNOWN[0])
        assert recorded[1:] == [KNOWN[0]]
    finally:
        logger.removeHandler(listener)
