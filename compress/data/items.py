"""Items of data, and a source of them, opened."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.tasks import Observable


Kind = Literal["captioned_images", "image_edits", "masked_images", "texts"]
USER, ASSISTANT = "user", "assistant"  # roles of messages: a model learns to write those of the assistant


@dataclass(frozen=True)
class Message:
    """What one side says in a conversation. role: system, developer, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Item:
    """One caption with its image (uint8 [height, width, 3], made when asked for), one document, or one conversation.

    text: of a conversation, a plain rendering to be looked at.
    file: the image's, in the data's folder: several captions may be of one.
    messages: of a conversation, what a model is given through its chat template.
    input: the image that another is made of, uint8 [height, width, 3], as it lies in `input_file`; what is made of it is `image`.
    mask: where that image is inpainted, bool [height, width], as it lies in `mask_file`.
    before, after: captions of the input, and of what is made of it; "" where nobody wrote any.
    """

    id: str
    text: str
    image: Callable[[], NDArray[np.uint8]] | None = None
    file: str = ""
    messages: tuple[Message, ...] = ()
    input: Callable[[], NDArray[np.uint8]] | None = None
    mask: Callable[[], NDArray[np.bool_]] | None = None
    input_file: str = ""
    mask_file: str = ""
    before: str = ""
    after: str = ""

    @property
    def given(self) -> dict[str, Callable[[], object]]:
        """By their names in the data's folder, the files that a model is given of it, and how each is read."""
        read = {self.input_file: self.input, self.mask_file: self.mask}
        return {name: one for name, one in read.items() if name and one}


@dataclass(frozen=True)
class Data:
    """A source of items. `digest` covers their content and belongs into keys; `read(i)` is deterministic.

    rows: what the digest is of, item by item: id, text, and the digest of an image's file, or a conversation as JSON; none where items
        have no end. Of an edit, between text and image: the digests of input and mask, and both captions.
    loose: the rows whose id nobody gave, so that it gives way where it stands for another item too.
    place: where an item stands, for whoever looks for it.
    left_out: which items of the source do not count, in words.
    folder: in which the items' files are.
    """

    source: str
    kind: Kind
    digest: str
    count: int  # -1: as many as wanted, or as reading shows
    read: Callable[[int], Item]  # IndexError behind the last
    gives: frozenset[Observable] = frozenset()  # what of a metric's needs its items bring themselves
    lacks: Mapping[Observable, str] = field(default_factory=dict)  # and why not, of what they might have brought
    rows: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    loose: Collection[int] = field(default=(), repr=False, compare=False)
    place: Callable[[int], str] = field(default=str, repr=False, compare=False)
    left_out: str = ""
    folder: Path | None = field(default=None, repr=False, compare=False)

    @property
    def conversations(self) -> tuple[int, ...]:
        """Which of its items are conversations."""
        return tuple(i for i, row in enumerate(self.rows) if len(row) > 2) if self.kind == "texts" else ()

    def first(self, n: int) -> tuple[Item, ...]:
        """The first `n` items, or all there are."""
        return tuple(islice(self.each(), n))

    def each(self) -> Iterator[Item]:
        """The items, one at a time: some sources never end."""
        for index in count() if self.count < 0 else range(self.count):
            try:
                item = self.read(index)
            except IndexError:
                return
            yield item


KINDS_OF_DATA: Mapping[Kind, str] = {
    "captioned_images": "images with captions",
    "image_edits": "images with what they are made of",
    "masked_images": "images with masks of what is inpainted",
    "texts": "texts",
}
# What rows of a kind read as too, the plainest first: columns that are not asked for are left alone.
ALSO: Mapping[Kind, tuple[Kind, ...]] = {
    "image_edits": ("captioned_images",),
    "masked_images": ("captioned_images", "image_edits"),
}
