"""The rooms of the house as ARCHITECTURE.md lists them, and which of pare's modules imports which: read from syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Literal

import compress

ROOT = Path(compress.__file__).parent.parent
PARTS = ("compress", "evaluation")
When = Literal["module", "function"]


@dataclass(frozen=True)
class Room:
    """An entry of the table: a folder or a file, the row it stands in, and its ring."""

    entry: str
    row: int
    ring: int

    def holds(self, file: str) -> bool:
        return fnmatch(file, f"{self.entry}*") if self.entry.endswith("/") else fnmatch(file, self.entry)


def rooms_of(text: str) -> tuple[Room, ...]:
    """The rooms of the table in ARCHITECTURE.md, in its order."""
    rows = re.findall(r"^\| (`.*?) \| (\d) \|", text, re.MULTILINE)
    return tuple(
        Room(entry, n, int(ring)) for n, (cell, ring) in enumerate(rows) for entry in re.findall(r"`(.+?)`", cell)
    )


ROOMS = rooms_of((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


@cache
def room_of(file: str) -> Room | None:
    """The room that a file lies in: the longest entry that fits."""
    return max((room for room in ROOMS if room.holds(file)), key=lambda room: len(room.entry), default=None)


def sources() -> dict[str, Path]:
    """Each module's file, by its dotted name."""
    found = (f for part in PARTS for f in sorted((ROOT / part).rglob("*.py")))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in found}


SOURCES = sources()


def imports(tree: ast.AST, when: When = "module") -> Iterator[tuple[str, When]]:
    """The names that a tree imports, and whether inside a function; those for a type checker alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports say their whole name"
            yield from ((f"{node.module}.{alias.name}", when) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, "function" if inside else when)


def on_disk(name: str) -> str:
    """The module that a dotted name is of, or lies in; "" where it is none of ours."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name


def graph(texts: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """By module, those that it imports anywhere."""
    found = {name: {on_disk(one) for one, _ in imports(ast.parse(text))} for name, text in texts.items()}
    return {name: frozenset(ones - {"", name}) for name, ones in found.items()}


@cache
def texts() -> Mapping[str, str]:
    return {name: file.read_text(encoding="utf-8") for name, file in SOURCES.items()}


def place(module: str) -> str:
    return SOURCES[module].relative_to(ROOT).as_posix()
