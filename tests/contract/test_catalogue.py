"""What is on disk is what pare can do: every stage and metric file is held to the same contract."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

import compress
from compress.catalogue import MEANT, Stage, find_metric, find_stage, metric_names, stage_names, tasks_for
from compress.errors import UserError, near
from compress.machine import deps, gpus
from compress.params import Params
from compress.recipe.keep import KEEP
from compress.recipe.schema import recipe_schema
from compress.tasks import Observable
from tests.rooms import SOURCES, place, room_of

ROOT = Path(compress.__file__).parent.parent
HEAVY = [
    "torch",
    "transformers",
    "diffusers",
    "openvino",
    "nncf",
    "pandas",
    "scipy",
    "sklearn",
    "PIL",
    "safetensors",
    "onnx",
    "tokenizers",
    "accelerate",
]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
OURS = [
    p for p in RECIPES if "model: zoo://" in p.read_text()
]  # the others wait for a user's folder: tests/pipeline/test_few_steps.py


def test_there_is_something_on_disk() -> None:
    assert {"accelerate.steps", "build.openvino", "quantize.nncf"} <= set(stage_names())
    assert {"clip_score", "kid", "fid", "perplexity", "latency", "throughput", "size", "peak_memory"} <= set(
        metric_names()
    )


@pytest.mark.parametrize("name", stage_names())
def test_a_stage_is_its_file_and_says_what_it_does(name: str) -> None:
    stage = find_stage(name)
    assert isinstance(stage, Stage)
    assert stage.name == name
    assert (ROOT / "compress" / "stages" / f"{name.replace('.', '/')}.py").is_file()
    assert f"- {name}: {{" in stage.doc, "the docstring ends with a recipe"
    assert "Source:" in stage.doc
    assert stage.version >= 1
    assert stage.effects
    assert tasks_for(stage.needs)


@pytest.mark.parametrize("name", metric_names())
def test_a_metric_is_its_file_and_says_what_it_measures(name: str) -> None:
    metric = find_metric(name)
    assert metric.name == name
    assert len(metric.doc) > 60
    assert metric.needs <= set(get_args(Observable))
    assert metric.needs
    assert tasks_for(metric.needs)
    assert metric.better in ("lower", "higher", "same")


@pytest.mark.parametrize("name", [*stage_names(), *metric_names()])
def test_parameters_are_closed_frozen_and_described(name: str) -> None:
    record = find_stage(name) if name in stage_names() else find_metric(name)
    assert issubclass(record.params, Params)
    assert record.params.model_config["extra"] == "forbid"
    assert record.params.model_config["frozen"]
    for field, info in record.params.model_fields.items():
        assert info.description, f"{name}.{field} has no description"


def test_everything_of_ring_one_imports_without_a_heavy_library() -> None:
    """What imports tell is held by test_architecture; this runs them, with the heavy libraries out of reach."""
    names = sorted(name for name in SOURCES if (room := room_of(place(name))) and room.ring == 1)
    blocked = "; ".join(f"sys.modules[{m!r}] = None" for m in HEAVY)
    code = f"import sys, importlib; {blocked}\nfor m in {names!r}: importlib.import_module(m)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_compress_loads_no_torch_and_gives_every_public_name() -> None:
    code = "import sys, compress; assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules), 'heavy'"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert compress.__all__ == sorted(compress.__all__)
    for name in compress.__all__:
        assert callable(getattr(compress, name))
    with pytest.raises(AttributeError):
        compress.nothing  # noqa: B018


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_recipe_is_valid_and_can_be_planned(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = yaml.safe_load(path.read_text())
    jsonschema.validate(body, recipe_schema())
    if "device" in body:  # what the plan asks of a machine: a GPU, and a torch that knows it
        monkeypatch.setattr(gpus, "gpus_here", lambda: (gpus.Gpu("Some GPU", "SM90"),))
        monkeypatch.setattr(gpus, "torch_without_cuda", lambda: "")
    if any("quantize.llamacpp" in step for step in body["stages"]):  # its library compiles for ten minutes
        real = deps.version
        monkeypatch.setattr(deps, "version", lambda name: real(name) or ("1" if name == "llama-cpp-python" else ""))
        monkeypatch.setattr("compress.stages.build.gguf.installed", lambda name: True)
    for plan in compress.plan_all(path, cache=tmp_path):
        assert plan.recipe.evaluate.metrics
        assert not any(node.cached for node in plan.nodes)
        assert len({node.key for node in plan.nodes}) == len(plan.nodes)


# A recipe of the zoo claims something. Of these there is nothing to claim: fewer steps do better there (docs/engines.md has the numbers), and on a
# processor torch's own choice is as fast as any.
WITHOUT_RECIPE = {"accelerate.guidance_interval", "accelerate.attention"}


def test_there_is_a_recipe_for_every_stage() -> None:
    assert len(RECIPES) >= 4
    used = {name for path in RECIPES for stage in yaml.safe_load(path.read_text())["stages"] for name in stage}
    assert used - {KEEP} == set(stage_names()) - WITHOUT_RECIPE


def test_an_unknown_name_is_refused_with_its_near_match() -> None:
    assert near("build.openvno", stage_names()) == "did you mean `build.openvino`?"
    assert "`kid`" in near("kidd", metric_names())


@pytest.mark.parametrize("name", MEANT)
def test_a_way_that_is_known_by_its_own_name_leads_to_its_stage(name: str) -> None:
    with pytest.raises(UserError) as caught:
        find_stage(f"quantize.{name}")
    found = re.fullmatch(r"that is `([\w.]+): (.*)`", caught.value.problems[0].fix)
    assert found
    (params,) = yaml.safe_load_all(found[2])
    known = find_stage(found[1]).params
    known.model_validate({**({"steps": 2} if known.model_fields.get("steps") else {}), **params})
