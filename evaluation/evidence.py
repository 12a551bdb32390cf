"""What was observed of one side, before anyone scores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compress.machine.devices import Opening

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compress.artifact import Artifact
    from compress.data.items import Item
    from compress.files.locks import Hold

Floats: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True)
class Timings:
    """One side's part of the interleaved measurement; entry i of each array is block i.

    seconds: of one whole call. first: until the first token (empty for images). work: denoiser evaluations or tokens of a
    call, equal in every block. joules: of one whole call, by the machine's own `counters` (empty where it has none).
    prompt_tokens: of each prompt, for text.
    """

    seconds: Floats
    first: Floats
    work: int
    items: int
    joules: Floats = field(default_factory=lambda: np.empty(0))
    counters: str = ""
    prompt_tokens: int = 0

    @property
    def protocol(self) -> dict[str, str | int | float]:
        """What decides a time beside the model and the machine."""
        prompt: dict[str, str | int | float] = {"prompt_tokens": self.prompt_tokens} if self.prompt_tokens else {}
        return {"batch": self.items, "work": self.work, **prompt}


@dataclass(frozen=True)
class Start:
    """One fresh process that loads the model and makes one call.

    peak_bytes: its highest resident memory.
    seconds: from its libraries being imported to the call's end.
    device_bytes, reserved_bytes: on a GPU, the most that torch allocated and reserved there.
    call_seconds: of a later call on a GPU.
    device_seconds: of those, the ones in which the GPU was at work; 0 where that was not traced.
    """

    peak_bytes: int
    seconds: float
    device_bytes: int = 0
    reserved_bytes: int = 0
    call_seconds: float = 0.0
    device_seconds: float = 0.0


@dataclass(frozen=True)
class Continuation:
    """A prompt continued greedily until the model ends it or `Evidence.written` tokens stand there (the end counts as one).

    tokens: a tokenizer's numbers, or of an endpoint their texts; () also where its server does not tell them.
    """

    prompt: str
    tokens: tuple[int | str, ...]
    text: str


@dataclass(frozen=True)
class Evidence:
    """One side's observations. A metric reads only the parts that its `needs` names.

    original: the baseline's evidence, for metrics that compare a side with the original's own output; None: this is it.
    image: index to the generated uint8 [height, width, 3] of `items[index]`; read from disk, never all in memory.
    latent: index to what the image was decoded from, float32 [channels, height, width]; None where nothing is decoded.
    token_logprobs: per document, natural-log probabilities of each token given those before it.
    bytes_read: per document, how many bytes of UTF-8 those tokens stand for: a document longer than the model reads is cut.
    continuations: of the first prompts; written: the most tokens one could have.
    timings, starts: always fresh.
    opening, call, batch: how the model was opened and called, and how many items at a time, for metrics that do so themselves.
    key: what decides this evidence; data_key: what decides the real images. memory: a folder for what follows from them.
    each: how many items in a row are images of one prompt; the prompt is the unit.
    stated: what a reader must know of how it came about.
    holds: keep the files that this is read from where they are.
    """

    artifact: Artifact
    items: tuple[Item, ...] = ()
    original: Evidence | None = None
    image: Callable[[int], NDArray[np.uint8]] | None = None
    latent: Callable[[int], NDArray[np.float32]] | None = None
    token_logprobs: tuple[Floats, ...] = ()
    bytes_read: tuple[int, ...] = ()
    continuations: tuple[Continuation, ...] = ()
    written: int = 0
    timings: Timings | None = None
    starts: tuple[Start, ...] = ()
    opening: Opening = field(default_factory=Opening)
    call: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 16
    seed: int = 0
    key: str = ""
    data_key: str = ""
    memory: Path | None = None
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)
    each: int = 1
    message: tuple[str, ...] = ()
    holds: tuple[Hold, ...] = field(default=(), compare=False, repr=False)

    @property
    def unit_ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.items[:: self.each])

    @property
    def counted(self) -> dict[str, str]:
        """Which tokens are scored, where conversations are among the items, for a protocol."""
        chats = sum(bool(item.messages) for item in self.items)
        beside = "all of documents, and " if chats < len(self.items) else ""
        return {"tokens": f"{beside}the assistant's"} if chats else {}

    def first(self, count: int) -> Evidence:
        """What was observed on the first `count` units: the same as had no others been looked at."""
        return replace(
            self,
            items=self.items[: count * self.each],
            original=self.original and self.original.first(count),
            token_logprobs=self.token_logprobs[:count],
            bytes_read=self.bytes_read[:count],
            continuations=self.continuations[:count],
            protocol={**self.protocol, "samples": min(count, len(self.unit_ids))},
        )

    def images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Generated images `start` to `stop`: uint8 [n, height, width, 3].

        Raises:
            ValueError: this side generated none.
        """
        if self.image is None:
            raise ValueError("no images were generated")
        return np.stack([self.image(i) for i in range(start, min(stop, len(self.items)))])


def parting(one: Sequence[object], other: Sequence[object]) -> int:
    """Index of the first token that differs or that only one has; -1 where there is none."""
    shorter = min(len(one), len(other))
    same = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    return -1 if same == len(one) == len(other) else same
