"""A stage's version is part of its key: source that changes under an old version would pass off old results as new.

The golden file ties each version to a hash of the stage's own source and of every module of `algorithms/`, `engines/` and
`tasks/` that it reaches, and of the training loop. Comments and docstrings do not count. Where a change cannot alter a result, `make golden`
rewrites the hash alone, and the reviewer sees that it did.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.catalogue import find_stage, stage_names

ROOT = Path(compress.__file__).parent.parent
GOLDEN = "stage_versions.json"
COUNTED = tuple(
    f"compress.{name}"
    for name in (
        "algorithms",
        "building",
        "checkpoints",
        "choosing",
        "depths",
        "engines",
        "families",
        "graphs",
        "racing",
        "recordings",
        "tasks",
        "training",
    )
)


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of pare that are imported anywhere in a file, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def reached(module: str) -> dict[str, ast.Module]:
    """The trees of a module and of all that count below it."""
    found: dict[str, ast.Module] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or not file_of(name).is_file():
            continue
        found[name] = ast.parse(file_of(name).read_text())
        waiting += [i for i in imports(found[name]) if i.startswith(COUNTED)]
    return found


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value = ast.Constant("")
    return tree


def fingerprint(module: str) -> str:
    trees = sorted((name, ast.dump(without_docstrings(tree))) for name, tree in reached(module).items())
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()[:16]


def current() -> dict[str, dict[str, str | int]]:
    return {
        name: {"version": find_stage(name).version, "source": fingerprint(f"compress.stages.{name}")}
        for name in stage_names()
    }


def test_no_source_changes_under_an_old_version(golden: Callable[[str, str], str]) -> None:
    known = json.loads((ROOT / "tests" / "golden" / GOLDEN).read_text())
    if not os.environ.get("PARE_GOLDEN"):
        assert changed_under_one_version(known, current()) == [], (
            "raise the version, or if no result can differ, make golden"
        )
    found = json.dumps(current(), indent=2) + "\n"
    assert found == golden(GOLDEN, found)


def changed_under_one_version(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        name
        for name in now
        if name in known
        and now[name]["source"] != known[name]["source"]
        and now[name]["version"] == known[name]["version"]
    ]


def test_only_a_change_without_a_new_version_is_told() -> None:
    known = {"a": {"version": 1, "source": "x"}, "b": {"version": 1, "source": "x"}, "c": {"version": 1, "source": "x"}}
    now = {
        "a": {"version": 1, "source": "y"},
        "b": {"version": 2, "source": "y"},
        "c": known["c"],
        "d": {"version": 1, "source": "z"},
    }
    assert changed_under_one_version(known, now) == ["a"]


def test_a_stage_reaches_the_engines_that_do_its_work() -> None:
    assert "compress.engines.openvino.build" in reached("compress.stages.build.openvino")
    assert "compress.engines.openvino.quantize" in reached("compress.stages.quantize.nncf")
    assert "compress.cache" not in reached("compress.stages.quantize.nncf")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""One."""\nx = 1\n', '"""Two."""\nx = 1  # comment\n', True),
        ("def f():\n    'why'\n    return 1\n", "def f():\n    'other'\n\n    return 1\n", True),
        ("x = 1\n", "x = 2\n", False),
    ],
)
def test_only_what_runs_counts(before: str, after: str, same: bool) -> None:
    one, other = (ast.dump(without_docstrings(ast.parse(text))) for text in (before, after))
    assert (one == other) is same
