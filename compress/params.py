"""Closed, frozen parameter records: the one base class of everything a recipe can say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model


class Uncached:
    """Marks a field that does not change the result, and so stays out of the key: `Annotated[int, Uncached()]`."""


class Later:
    """Marks a field that a stage gained after its results had been cached: at its default, which does what was always done and must
    never become another, it stays out of the key."""


class Fault(NamedTuple):
    """What is wrong with what a field names, and what to do about it."""

    message: str
    fix: str


@dataclass(frozen=True)
class Placed:
    """Marks a field that names something on disk: `Annotated[str, Placed(check)]`. A relative path starts at the recipe.

    check: what is wrong with what lies there, as far as file names and JSON tell; None where nothing is.
    """

    check: Callable[[str], Fault | None]


class Shared:
    """Marks a setting of `evaluate` that every metric gets which has a parameter of its name and is given none itself."""


class Params(BaseModel):
    """Immutable, and closed: an unknown key is an error, never dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def counted(self) -> dict[str, Any]:
        """Every field with its default filled in, minus those marked `Uncached`, or `Later` and at their default: what belongs into a key."""
        skip = {
            name
            for name, field in type(self).model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Uncached) or (isinstance(mark, Later) and getattr(self, name) == field.get_default())
        }
        return self.model_dump(mode="json", exclude=skip)


def placed(cls: type[Params]) -> dict[str, Placed]:
    """The fields of a record that name something on disk."""
    marks = ((name, mark) for name, field in cls.model_fields.items() for mark in field.metadata)
    return {name: mark for name, mark in marks if isinstance(mark, Placed)}


def faults(cls: type[Params], values: Mapping[str, object]) -> dict[str, Fault]:
    """By field, what is wrong with what is named there."""
    found = {name: mark.check(str(values[name])) for name, mark in placed(cls).items() if name in values}
    return {name: fault for name, fault in found.items() if fault}


def spelt(value: object) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def unused_faults(params: Params, choice: str, used: Mapping[str, Sequence[object]]) -> tuple[Fault, ...]:
    """What was given, be it a default, that the value of another field has no use for.

    Args:
        choice: the field that decides, such as mode. used: by field, the values of it that use that field.
    """
    value = getattr(params, choice)
    given = {name for name in params.model_fields_set if getattr(params, name) is not None}  # null asks for nothing
    unused = {name: values for name, values in used.items() if name in given and value not in values}
    return tuple(
        Fault(
            f"{choice} {spelt(value)} has no use for {name}",
            f"leave {name} out, or give {choice}: {' or '.join(map(spelt, values))}",
        )
        for name, values in unused.items()
    )


def united(name: str, base: type[Params], parts: Sequence[type[Params]], **more: tuple[Any, Any]) -> type[Params]:
    """A record with the fields of `base`, of each of `parts`, and `more` (name to annotation and field).

    Raises:
        TypeError: two parts mean different things by one name.
    """
    fields: dict[str, tuple[Any, Any]] = dict(more)
    for part in parts:
        for key, info in part.model_fields.items():
            given = (info.annotation, info)
            if key in base.model_fields or repr(fields.setdefault(key, given)[1]) != repr(info):
                raise TypeError(f"{part.__name__}.{key} is a setting of something else already")
    made: type[Params] = create_model(name, __base__=base, __doc__=base.__doc__, __module__=base.__module__, **fields)  # type: ignore[call-overload]
    return made


def one_of(names: Iterable[str]) -> Any:
    """The type of a field that takes one of these names: those of records, which are on disk and in no list."""
    return Literal[tuple(names)]


TRAINED = (
    7  # times a model's weights in memory while it is taught: two teachers at work, gradients, two moments, an average
)
Share = Annotated[float, Field(gt=0, lt=1)]


class Optimising(Params):
    """How weights are taught, but for how long."""

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


class Training(Optimising):
    """What every stage that trains can be reported; a stage adds its own fields in a subclass."""

    steps: int = Field(600, ge=1, description="optimiser steps")
