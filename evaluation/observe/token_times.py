"""Times of tokens, out of the interleaved blocks, as samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from evaluation.evidence import Evidence, Timings
from evaluation.values import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray


def token_sample(evidence: Evidence, seconds: Callable[[Timings], NDArray[np.float64]]) -> Sample:
    """Milliseconds, one a block, of what `seconds` makes of a side's timings [blocks].

    Raises:
        ValueError: no first token was timed.
    """
    timings = evidence.timings
    if timings is None or not len(timings.first):
        raise ValueError("no first token was timed")
    return Sample(tuple(map(str, range(len(timings.first)))), 1000 * seconds(timings), protocol=timings.protocol)
