"""What was observed of one side, before anyone scores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.data import Item

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timings:
    """One side's part of the interleaved measurement; entry i of each array is block i.

    seconds: of one whole call. first: until the first token (empty for pictures). work: denoiser evaluations or tokens of a
    call, equal in every block.
    """

    seconds: Floats
    first: Floats
    work: int
    items: int


@dataclass(frozen=True)
class Evidence:
    """One side's observations. A metric reads only the part that its `needs` names.

    picture: index to the painted uint8 [height, width, 3] of `items[index]`; read from disk, never all in memory.
    token_logprobs: per document, natural-log probabilities of each token given those before it.
    bytes_read: per document, how many bytes of UTF-8 those tokens stand for: a document longer than the model reads is cut.
    timings: always fresh.
    """

    artifact: Artifact
    items: tuple[Item, ...] = ()
    picture: Callable[[int], NDArray[np.uint8]] | None = None
    token_logprobs: tuple[Floats, ...] = ()
    bytes_read: tuple[int, ...] = ()
    timings: Timings | None = None
    peak_memory_bytes: int = 0
    dtype: str = ""
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def unit_ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.items)

    def first(self, count: int) -> Evidence:
        """What was observed on the first `count` items: the same as had no others been looked at."""
        return replace(
            self,
            items=self.items[:count],
            token_logprobs=self.token_logprobs[:count],
            bytes_read=self.bytes_read[:count],
            protocol={**self.protocol, "samples": min(count, len(self.items))},
        )

    def pictures(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Painted pictures `start` to `stop`: uint8 [n, height, width, 3].

        Raises:
            ValueError: this side painted none.
        """
        if self.picture is None:
            raise ValueError("no pictures were painted")
        return np.stack([self.picture(i) for i in range(start, min(stop, len(self.items)))])
