"""Records that nobody listed: an engine, a task, a stage and a metric as files in a folder, and pare looking at them.

    python -m tests.planted FOLDER JSON.out         what pare shows of them
    python -m tests.planted FOLDER --contract       the contract tests, with them on disk

Planting happens before pare's own modules are imported, as when the files lay in the package.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

ENGINE = '''
"""Quill: an engine that nobody has."""

from compress.engines import Engine

ENGINE = Engine(
    format="quill",
    title="Quill",
    distribution="quill-runtime",
    files=("*.quill",),
    devices=frozenset({"cpu"}),
    precisions={"float32": 1e-3, "int3_weights": 0.5},
    refuse=lambda artifact, component: "Quill writes no text" if artifact.writes_text else "",
)
'''
STAGE = '''
"""Build Quill engines.

Use it never. Source: nobody.

    - build.quill: {}
"""

from typing import TYPE_CHECKING

from pydantic import Field

from compress.catalogue import stage
from compress.engines.quill import ENGINE
from compress.model.exportable import refuse_engine
from compress.params import Params, one_of

if TYPE_CHECKING:
    Precision = str
else:
    Precision = one_of(ENGINE.precisions)


class BuildQuill(Params):
    precision: Precision = Field("float32", description="what it computes in")


def refuse(artifact, params):
    return refuse_engine(artifact, "all", "quill")


@stage(
    version=1,
    params=BuildQuill,
    formats={"torch": "quill"},
    effects=("format",),
    reproducible="bytes",
    refuse=refuse,
)
def run(artifact, params, context):
    raise AssertionError("never run")
'''
TASK = '''
"""Murmur: what a folder with murmur.json does."""

from pydantic import Field

from compress.artifact import Artifact, Component, read_json
from compress.errors import Problem
from compress.params import Params
from compress.tasks import Size, Task


class Murmuring(Params):
    breath: int = Field(3, ge=1, description="how deep")


def recognise(path):
    if not (path / "murmur.json").is_file():
        return None
    if not read_json(path / "murmur.json").get("voice"):
        return Problem(str(path), "it has no voice", "give it one")
    return Artifact(path, "murmur", {"model": Component("torch", "", "LlamaForCausalLM")})


def check(artifact):
    if read_json(artifact.path / "murmur.json").get("voice") == "hoarse":
        yield Problem(str(artifact.path), "its voice is hoarse", "rest it")


TASK = Task(
    name="murmur",
    title="murmuring",
    data="texts",
    yields=frozenset({"completions"}),
    settings=Murmuring,
    recognise=recognise,
    check=check,
    sizes=lambda spec: {"breath": Size("tokens", spec.of(Murmuring).breath)},
)
'''
METRIC = '''
"""Hush: how quiet a completion is. A metric that nobody has, with a docstring that is long enough."""

import numpy as np

from compress.params import Params
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics


class Hush(Params):
    """Nothing to set."""


@metric(version=1, title="hush", params=Hush, needs=("completions",), better="lower", statistic=statistics.MEAN)
def measure(evidence, params):
    return Sample(evidence.unit_ids, np.zeros(len(evidence.items)))
'''
FILES = {
    "compress.engines": ("quill/__init__.py", ENGINE),
    "compress.stages.build": ("quill.py", STAGE),
    "compress.tasks": ("murmur.py", TASK),
    "evaluation.metrics": ("hush.py", METRIC),
}


def plant(folder: Path) -> None:
    """Write the files, and let each package look into them as into its own folder."""
    for package, (name, source) in FILES.items():
        file = folder / package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        importlib.import_module(package).__path__.append(str(folder / package))


def shown(folder: Path) -> dict[str, Any]:
    """What each face of pare says of the planted records."""
    from typer.testing import CliRunner

    from compress import api
    from compress.cli import app
    from compress.commands.doctor import diagnose
    from compress.errors import RecipeError
    from compress.recipe.schema import recipe_schema
    from tests.fakes import write_safetensors

    def problems(model: Path | str, text: str) -> list[str]:
        file = folder / "recipe.yaml"
        file.write_text(f"schema: 1\nname: planted\nmodel: {model}\n{text}")
        try:
            plan = api.plan(file, cache=folder / "cache")
        except RecipeError as error:
            return [problem.message for problem in error.problems]
        return [
            f"planned {plan.source.artifact.task}",
            *(node.expected.components["model"].format for node in plan.nodes),
        ]

    models = {voice: folder / voice for voice in ("clear", "hoarse")}
    for voice, model in models.items():
        model.mkdir(exist_ok=True)
        (model / "murmur.json").write_text(json.dumps({"voice": voice}))
        (model / "config.json").write_text("{}")
        write_safetensors(model / "model.safetensors")
        (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    explained = CliRunner().invoke(app, ["explain", "build.fastest"]).stdout
    return {
        "list": {title: sorted(rows) for title, rows in listed.items() if isinstance(rows, dict)},
        "explain": "int3_weights" in explained,
        "subjects": {name: CliRunner().invoke(app, ["explain", name]).stdout for name in ("data", "models")},
        "schema": json.dumps(recipe_schema()),
        "doctor": diagnose()["engines"],
        "libraries": sorted(diagnose()["libraries"]),
        "planned": problems(models["clear"], "evaluate: {metrics: [size], breath: 4}\n"),
        "checked": problems(models["hoarse"], ""),
        "refused": problems(models["clear"], "stages: [build.quill: {}]\n"),
        "foreign": problems("zoo://docs-llama", "evaluate: {metrics: [size], breath: 4}\n"),
        "misfit": problems(models["clear"], "evaluate: {metrics: [kid, hush]}\n"),
        "precision": problems("zoo://docs-llama", "stages: [build.quill: {precision: int9}]\n"),
    }


def main(folder: str, out: str) -> int:
    plant(Path(folder))
    if out == "--contract":
        import pytest

        return int(
            pytest.main(
                [
                    "-q",
                    "-o",
                    "addopts=",
                    "-p",
                    "no:cacheprovider",
                    "tests/contract/test_catalogue.py",
                    "-k",
                    "quill or hush",
                ]
            )
        )
    Path(out).write_text(json.dumps(shown(Path(folder)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
