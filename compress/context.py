"""What a stage is given besides its artifact and parameters. Exactly this, and nothing global."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from compress.events import Emit, Event, silent, track
from compress.machine.devices import Opening

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.data.items import Data

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """`out` is an empty folder to fill; `scratch` survives a crash; `opening` says where every model is opened that the stage opens;
    `data` maps train and calibration to their items."""

    out: Path
    scratch: Path
    seed: int = 0
    opening: Opening = field(default_factory=Opening)
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    data: Mapping[str, Data] = field(default_factory=dict)
    emit: Emit = silent
    node: str = ""
    link: bool = True  # whether the input's files may be hard-linked: it lies in the cache, not in the user's folder

    def progress(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Yield `items` with one progress event each."""
        return track(items, self.emit, f"{self.node} {what}".strip(), total)

    def tell(self, what: str, done: int, total: int) -> None:
        """Say how far work is that counts for itself, as in a process of its own."""
        self.emit(Event("progress", f"{self.node} {what}".strip(), done=done, total=total))

    def note(self, message: str, **facts: object) -> None:
        """Say something about the work; `facts` (what JSON can say) go into the cache and the report."""
        self.emit(Event("note", self.node, message, facts=facts))
