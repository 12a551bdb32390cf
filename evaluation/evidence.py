"""What was observed of one side, before anyone scores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.data import Item
    from evaluation.timing import Timings


@dataclass(frozen=True)
class Evidence:
    """One side's observations. A metric reads only the part that its `needs` names.

    items: the evaluation prompts (with their real pictures where the source has them) or documents.
    picture: index to the painted uint8 [height, width, 3] of `items[index]`; read from disk, never all in memory.
    token_logprobs: per document, float64 natural-log probabilities of each token given those before it.
    timings: this side's part of the interleaved measurement, always fresh.
    """

    artifact: Artifact
    items: tuple[Item, ...]
    picture: Callable[[int], NDArray[np.uint8]] | None = None
    token_logprobs: tuple[NDArray[np.float64], ...] = ()
    timings: Timings | None = None
    peak_memory_bytes: int = 0
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    directory: Path = Path()

    @cached_property
    def unit_ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.items)
