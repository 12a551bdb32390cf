"""Closed, frozen parameter records: the one base class of everything a recipe can say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


TRAINED = (
    7  # times a model's weights in memory while it is taught: two teachers at work, gradients, two moments, an average
)
Share = Annotated[float, Field(gt=0, lt=1)]


class Training(Params):
    """What every stage that trains can be told; a stage adds its own fields in a subclass."""

    steps: int = Field(600, ge=1, description="optimiser steps")
    learning_rate: float = Field(3e-4, gt=0, description="peak of the learning rate, which then falls to a twentieth")
    warmup: int = Field(20, ge=0, description="steps over which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay of AdamW")
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay of the averaged weights that are kept; 0 keeps the last ones"
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the arithmetic, not the weights; auto is bfloat16 where the device has it, else float32"
    )
    checkpoint_seconds: Annotated[float, Uncached()] = Field(
        60.0, gt=0, description="seconds between checkpoints; does not change the result"
    )
