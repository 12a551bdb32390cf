"""Values given in Python, or as an option, on their way into a recipe: as a tree that reading checks, or as YAML text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import PurePath

import yaml

from compress.errors import Problem, RecipeError
from compress.params import Params
from compress.recipe.yaml_tree import Node, resolve_scalar

BREAKS = frozenset("\x85\u2028\u2029")  # line breaks to YAML 1.1, and none to 1.2
FIX = "give a number, a text, true, false, a list or a mapping of these"


def tree_of(value: object, place: str, path: str = "") -> Node:
    """`value` as the tree of the same YAML; every place in it is `place`, and `path` names it in messages.

    Raises:
        RecipeError: it is, or holds, what no recipe can say.
    """
    if isinstance(value, Params):
        return tree_of(value.model_dump(mode="json"), place, path)
    if isinstance(value, Mapping):
        inner = {_key(key, place, path): tree_of(part, place, _below(path, key)) for key, part in value.items()}
        return Node(inner, place, place)
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return Node([tree_of(part, place, _below(path, n)) for n, part in enumerate(entries)], place, place)
    return Node(_scalar(value, place, path), place, place)


def write_yaml(value: object, *, one_line: bool = False) -> str:
    """YAML text that `parse_tree` reads back as the same value.

    Raises:
        RecipeError: it is, or holds, what no recipe can say.
    """
    plain = tree_of(value, "Python").plain()
    return str(
        yaml.dump(
            plain,
            Dumper=_Writer,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=one_line or None,
            width=math.inf,
            explicit_end=False,
        )
    ).removesuffix("...\n")


def _scalar(value: object, place: str, path: str) -> str | bool | int | float | None:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Integral):  # numpy's among them
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    named = f"{path}: " if path else ""
    what = f"{value} is not a finite number" if isinstance(value, Real) else f"no recipe can hold a {_kind(value)}"
    raise RecipeError((Problem(place, f"{named}{what}", FIX),))


def _key(key: object, place: str, path: str) -> str:
    if isinstance(key, str):
        return key
    raise RecipeError((Problem(place, f"{path or 'a mapping'} has the key {key!r}", "a key is text"),))


def _kind(value: object) -> str:
    return type(value).__name__


def _below(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)


class _Writer(yaml.SafeDumper):
    """Quotes what YAML 1.2, which recipes are read by, takes for a number, and PyYAML for text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(writer: _Writer, text: str) -> yaml.ScalarNode:
    try:
        is_text = resolve_scalar(text) is text
    except ValueError:
        is_text = False
    style = '"' if BREAKS & set(text) else None if is_text else "'"  # which alone writes a line break as an escape
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _text)
