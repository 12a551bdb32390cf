"""A model behind an endpoint as one side of a comparison: it can be asked, and nothing of it lies here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.endpoints.address import Address
from compress.tasks import Observable

if TYPE_CHECKING:
    from compress.endpoints.calls import Client
    from compress.endpoints.images import ImageCalls
    from compress.endpoints.texts import TextCalls


@dataclass(frozen=True, kw_only=True)
class Served(Artifact):
    """An artifact without a folder: a server has it.

    listed: what the server's list says of the model. calls: how it is asked, once that is known.
    wanted: what metrics need of it. answers: the folder into which a run puts what it answered.
    """

    address: Address
    client: Client = field(repr=False, compare=False)
    listed: Mapping[str, Any] = field(default_factory=dict)
    calls: ImageCalls | TextCalls | None = None
    wanted: frozenset[Observable] = frozenset()
    answers: Path | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it: its address, its host, and what the server's list says of the model."""
        return {**self.listed, "address": str(self.address), "host": self.address.host}
