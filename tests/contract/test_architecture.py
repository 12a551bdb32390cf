"""The house is as ARCHITECTURE.md draws it: rooms in the order of the flow, no import against it, no circle, and heavy libraries only in ring 2."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping

import pytest

import compress
from tests.rooms import ROOMS, ROOT, SOURCES, graph, imports, on_disk, place, room_of, texts

LIGHT = frozenset(
    {*sys.stdlib_module_names, "pydantic", "yaml", "typer", "rich", "click", "numpy", "compress", "evaluation"}
)
FLAT = {"compress": 14, "evaluation": 4}


def against_the_flow(edges: Mapping[str, frozenset[str]]) -> list[str]:
    """Imports of what stands in a row further down."""
    found = []
    for module, ones in edges.items():
        for one in ones:
            here, there = room_of(place(module)), room_of(place(one))
            if here and there and there.row > here.row:
                found.append(f"{module} imports {one}")
    return sorted(found)


def circle(edges: Mapping[str, frozenset[str]]) -> list[str]:
    """Modules that import each other in a circle, or none: what is left when whoever imports nobody, or is imported by nobody, goes."""
    left = dict(edges)
    while True:
        wanted = frozenset().union(*left.values())
        free = [name for name, ones in left.items() if not ones & left.keys() or name not in wanted]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]


def test_each_module_lies_in_a_room_and_each_room_is_there() -> None:
    assert [place(name) for name in SOURCES if room_of(place(name)) is None] == []
    used = {room_of(place(name)) for name in SOURCES}
    assert [room.entry for room in ROOMS if room not in used] == []


@pytest.mark.parametrize("part", FLAT)
def test_few_files_lie_flat(part: str) -> None:
    flat = sorted(f.name for f in (ROOT / part).glob("*.py"))
    assert len(flat) <= FLAT[part], flat


@pytest.mark.parametrize("part", FLAT)
def test_each_folder_and_each_file_at_the_top_is_an_entry_of_its_own(part: str) -> None:
    top = [f.relative_to(ROOT).as_posix() + "/" * f.is_dir() for f in sorted((ROOT / part).iterdir())]
    entries = {room.entry for room in ROOMS}
    assert [
        one for one in top if one not in entries and "__pycache__" not in one and not one.endswith("py.typed")
    ] == []


def test_no_import_runs_against_the_flow() -> None:
    assert against_the_flow(graph(texts())) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(graph(texts())) == []


def test_a_planted_import_against_the_flow_is_seen() -> None:
    planted = texts()["compress.recipe.values"] + "\ndef late():\n    from compress.planning.plan import make_plan\n"
    found = against_the_flow(graph({**texts(), "compress.recipe.values": planted}))
    assert found == ["compress.recipe.values imports compress.planning.plan"]


def test_a_planted_circle_is_seen() -> None:
    planted = texts()["compress.files.hashing"] + "\ndef late():\n    from compress.artifact import Artifact\n"
    assert circle(graph({**texts(), "compress.files.hashing": planted})) == [
        "compress.artifact",
        "compress.files.hashing",
    ]


def test_ring_one_loads_nothing_heavy() -> None:
    heavy = []
    for name, text in texts().items():
        here = room_of(place(name))
        if here is None or here.ring == 2:
            continue
        for one, when in imports(ast.parse(text)):
            there = room_of(place(on_disk(one))) if on_disk(one) else None
            if when == "module" and (one.split(".")[0] not in LIGHT or (there and there.ring == 2)):
                heavy.append(f"{name} imports {one}")
    assert heavy == []


def test_no_folder_or_file_takes_the_name_of_a_public_function() -> None:
    """A sub-package `plan` would replace `compress.plan` at its first import."""
    taken = {f.stem for f in (ROOT / "compress").iterdir()}
    assert taken & set(compress.__all__) == set()
