"""The parameters of a stage or metric, reported in the words that a recipe uses for them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from compress.params import Params

WIDTH = 110  # columns
BOUNDS = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< ", "multiple_of": "a multiple of "}


def parameter_lines(params: type[Params], depth: int = 1) -> Iterator[str]:
    """For each parameter what it may be and its default, and below what it does; those of a nested record further in."""
    for name, field in params.model_fields.items():
        default = (
            "required" if field.is_required() else f"default {value(field.get_default(call_default_factory=True))}"
        )
        yield f"{'  ' * depth}{name}: {kind(field.annotation)}{_range(field)} ({default})"
        indent = "  " * (depth + 2)
        yield from textwrap.wrap(field.description or "", WIDTH, initial_indent=indent, subsequent_indent=indent)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Params):
            yield from parameter_lines(field.annotation, depth + 1)


def _range(field: FieldInfo) -> str:
    """What a number may be, behind what it is: `, ≥ 1, a multiple of 8`."""
    bounds = ((name, getattr(mark, name, None)) for mark in field.metadata for name in BOUNDS)
    return "".join(f", {BOUNDS[name]}{bound:.12g}" for name, bound in bounds if bound is not None)


def kind(annotation: Any) -> str:
    """What a value may be, as YAML: `int`, `[str, …]`, `ddim | euler`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is NoneType:
        return "null"
    if origin is Annotated:
        return kind(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is tuple:
        return f"[{', '.join('…' if part is Ellipsis else kind(part) for part in parts)}]"
    if origin is Mapping:
        return "mapping"
    if origin is not None:  # a union
        return " | ".join(map(kind, parts))
    return "mapping" if issubclass(annotation, Params) else str(annotation.__name__)


def value(given: object) -> str:
    """A value as a recipe has it, in one line."""
    if isinstance(given, Params):
        return f"{{{', '.join(f'{name}: {value(v)}' for name, v in given)}}}"
    if isinstance(given, tuple):
        return f"[{', '.join(map(value, given))}]"
    if given is None or isinstance(given, bool):
        return {None: "null", True: "true", False: "false"}[given]
    return str(given) if given != "" else '""'
