"""Closed, frozen parameter records: the one base class of everything a recipe can say."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Uncached:
    """Marks a field that does not change the result, and so stays out of the key: `Annotated[int, Uncached()]`."""


class Params(BaseModel):
    """Immutable, and closed: an unknown key is an error, never dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def counted(self) -> dict[str, Any]:
        """Every field with its default filled in, minus those marked `Uncached`: what belongs into a key."""
        skip = {
            name
            for name, field in type(self).model_fields.items()
            if any(isinstance(m, Uncached) for m in field.metadata)
        }
        return self.model_dump(mode="json", exclude=skip)


Share = Annotated[float, Field(gt=0, lt=1)]
