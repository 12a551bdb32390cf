"""Recipes as hands and scripts spoil them: a shipped one, with some of its tree or its letters changed, drawn from a seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import TypeAlias

import yaml

Tree: TypeAlias = "dict[str, Tree] | list[Tree] | str | int | float | bool | None"
ODD: tuple[Tree, ...] = (
    None, "", " ", True, 0, -1, 2**63, 10**400, 1e308, float("inf"), float("nan"), [], {}, [[]], {"a": {"b": []}}, [None],
    "\0", "a\0b", "x" * 300, "../" * 40, "~nobody/x", "/", ".", "zoo://", "zoo://nothing", "zoo://digits/nothing", "hf://", "hf://a/b",
    "1%", "-5%", "1e9%", "${a}", "${", "${vars}", "%s", "{}", "é\u2028ü", "\ud7ff", "﻿", "1_000", "0x10", "yes", "2026-11-27",
    ["a", 1, None], {"within": 1, "worse_by": 1}, {"steps": "many"}, "cuda:99", "cpu ", "source",
)  # fmt: skip
KEYS = (
    "stage",
    "modle",
    "extends",
    "vars",
    "matrix",
    "data",
    "evaluate",
    "gates",
    "id",
    "from",
    "<<",
    "",
    "1",
    "x" * 260,
    "a\0b",
    "a.b",
)
LETTERS = "\0\t\n\r :-#&*!|>%@`'\"{}[],é\u2028\x85﻿$0"


def mutated(text: str, seed: int) -> bytes:
    """A nonfinite recipe: up to four changes of the tree, of the text, or of both."""
    draw = random.Random(seed)
    if draw.random() < 0.6:
        tree: Tree = yaml.safe_load(text)
        for _ in range(draw.randint(1, 3)):
            tree = _change(tree, draw)
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw.random() < 0.5)
    if draw.random() < 0.6:
        for _ in range(draw.randint(1, 4)):
            text = draw.choice(TEXT)(text, draw)
    made = text.encode("utf-8", "surrogatepass")
    return _bytes(made, draw) if draw.random() < 0.05 else made


def _change(tree: Tree, draw: random.Random) -> Tree:
    """One node somewhere replaced, removed, renamed, doubled or exchanged for another."""
    tree = copy.deepcopy(tree)
    spots = list(_spots(tree))
    if not spots:
        return draw.choice(ODD)
    home, key = draw.choice(spots)
    kind = draw.randrange(6)
    if kind == 0:
        del home[key]
    elif kind == 1 and isinstance(home, dict):
        home[draw.choice(KEYS)] = home.pop(key)
    elif kind == 2 and isinstance(home, dict):
        home[draw.choice(KEYS)] = copy.deepcopy(draw.choice(ODD))
    elif kind == 3 and isinstance(home, list):
        home.insert(draw.randrange(len(home) + 1), copy.deepcopy(draw.choice(home)))
    elif kind == 4:
        other, place = draw.choice(spots)
        home[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(home[key])
    else:
        home[key] = copy.deepcopy(draw.choice(ODD))
    return tree


def _spots(tree: Tree):  # type: ignore[no-untyped-def]  # a home and its key are of one kind, which no type can say
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield tree, key
        yield from _spots(value)


def _cut(text: str, draw: random.Random) -> str:
    start = draw.randrange(len(text) + 1)
    return text[:start] + text[start + draw.randrange(12) :]


def _insert(text: str, draw: random.Random) -> str:
    place = draw.randrange(len(text) + 1)
    return text[:place] + draw.choice(LETTERS) * draw.choice((1, 1, 1, 2, 40)) + text[place:]


def _lines(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    lines.insert(one, draw.choice(lines))
    return "\n".join(lines)


def _indent(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    one = draw.randrange(len(lines))
    lines[one] = " " * draw.randrange(5) + lines[one].lstrip()
    return "\n".join(lines)


TEXT: tuple[Callable[[str, random.Random], str], ...] = (
    _cut,
    _insert,
    _lines,
    _indent,
    lambda t, d: t[: d.randrange(len(t) + 1)],
)


def _bytes(made: bytes, draw: random.Random) -> bytes:
    """Bytes that are no UTF-8, or of another encoding."""
    place = draw.randrange(len(made) + 1)
    return draw.choice(
        (
            made[:place] + b"\xff" + made[place:],
            made.decode("utf-8", "replace").encode("utf-16"),
            b"\xef\xbb\xbf" + made,
        )
    )
