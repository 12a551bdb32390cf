"""Tasks, engines, stages and metrics are records on disk: one more file is seen everywhere, and no list names them by hand."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.catalogue import engine_names, find_engine, find_task, task_names
from compress.commands.sides import GENERATING
from compress.engines import TOLERANCE
from compress.params import Params

ROOT = Path(compress.__file__).parent.parent
HOMES = ("compress/tasks/", "compress/opening/", "compress/engines/", "compress/zoo/training/")
SOURCES = [f for part in ("compress", "evaluation") for f in sorted((ROOT / part).rglob("*.py"))]


@pytest.mark.parametrize("name", task_names())
def test_a_task_is_its_file_and_is_opened_under_its_name(name: str) -> None:
    task = find_task(name)
    assert task.name == name
    assert (ROOT / "compress" / "opening" / f"{name}.py").is_file()
    assert task.yields
    assert task.title
    assert set(task.called) == set(task.baseline.model_fields)
    for record in (task.settings, task.baseline):
        assert issubclass(record, Params)
        assert all(field.description for field in record.model_fields.values())


def test_folders_of_images_are_of_one_task_whatever_others_generate() -> None:
    (name,) = [name for name in task_names() if find_task(name).folders]
    assert not find_task(name).fits(("images",))
    assert name == GENERATING


@pytest.mark.parametrize("name", engine_names())
def test_an_engine_is_its_package_and_runs_what_it_says(name: str) -> None:
    engine = find_engine(name)
    assert engine.format == name
    assert (ROOT / "compress" / "engines" / name / "runtime.py").is_file()
    assert engine.devices
    assert engine.files
    assert set(engine.precisions) <= set(TOLERANCE)
    assert all(0 < tolerance < 1 for tolerance in engine.precisions.values())


def named_together(tree: ast.AST, names: frozenset[str]) -> Iterator[int]:
    """Lines of collections, or of alternatives, that spell two or more of the names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
            inside = node.keys if isinstance(node, ast.Dict) else node.elts
            found = {one.value for one in inside if isinstance(one, ast.Constant)} & names
            if len(found) > 1:
                yield node.lineno


@pytest.mark.parametrize("kind", ["task", "engine"])
def test_no_list_names_tasks_or_engines_by_hand(kind: str) -> None:
    names = frozenset(task_names() if kind == "task" else engine_names())
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in SOURCES
        if not str(file.relative_to(ROOT)).startswith(HOMES)
        for line in named_together(ast.parse(file.read_text()), names)
        # What a stage imports are distributions, some of which are called as the engine is.
        if "libraries" not in file.read_text().splitlines()[line - 1]
    ]
    assert found == []


def test_nothing_outside_asks_which_task_it_is() -> None:
    found = []
    for file in SOURCES:
        if str(file.relative_to(ROOT)).startswith(HOMES):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            if any(isinstance(side, ast.Constant) and side.value in task_names() for side in sides):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("planted")
    out = folder / "shown.json"
    done = run_planted(folder, str(out))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def run_planted(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.planted", str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_planted_records_are_listed(planted: dict[str, Any]) -> None:
    for title, name in (("engines", "quill"), ("tasks", "murmur"), ("stages", "build.quill"), ("metrics", "hush")):
        assert name in planted["list"][title]


def test_the_schema_takes_their_names_settings_and_precisions(planted: dict[str, Any]) -> None:
    for word in ("build.quill", "hush", "breath", "int3_weights"):
        assert f'"{word}"' in planted["schema"]
    assert planted["explain"], "build.fastest tries every engine's precisions"


def test_they_are_reported_with_the_data_and_the_models(planted: dict[str, Any]) -> None:
    reported = planted["subjects"]
    assert "murmur: texts" in reported["data"]
    assert "hush" in reported["data"].partition("murmur: texts")[2]
    assert re.search(r"^  murmur\n +murmuring, run by", reported["models"], re.MULTILINE)
    assert re.search(r"^  build.quill +Quill: models for .*murmur", reported["models"], re.MULTILINE)


def test_the_doctor_tells_of_the_engine_and_what_runs_it(planted: dict[str, Any]) -> None:
    assert planted["doctor"]["quill"] == "not installed: pip install quill-runtime"
    assert "quill-runtime" in planted["libraries"]


def test_the_plan_recognises_checks_and_refuses_by_the_records(planted: dict[str, Any]) -> None:
    assert planted["planned"] == ["planned murmur"]
    assert "its voice is hoarse" in planted["checked"]
    assert planted["refused"] == ["build.quill: Quill writes no text"]
    (foreign,) = planted["foreign"]
    assert foreign == "evaluate.breath is a setting of murmur, and this model does text_generation"
    assert any(line.startswith("kid measures ") and "text_to_image" in line for line in planted["misfit"])
    assert not any("hush measures" in line for line in planted["misfit"])
    (precision,) = planted["precision"]
    assert "int3_weights" in precision


def test_the_contract_tests_hold_planted_records_too(tmp_path: Path) -> None:
    done = run_planted(tmp_path, "--contract")
    assert "passed" in done.stdout
    assert "test_a_stage_is_its_file_and_says_what_it_does[build.quill]" in done.stdout, (
        "it does not lie in the package"
    )
