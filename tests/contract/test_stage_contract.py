"""Every stage on disk keeps what it declares, tried with the recipe of its own docstring on a tiny model of each task."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import compress
from compress.artifact import CHOSEN
from compress.catalogue import engine_names, find_stage, find_task, stage_names, task_names, tasks_for
from compress.errors import RecipeError
from compress.events import silent
from compress.execution.execute import Done, execute
from compress.files.hashing import digest_files
from compress.machine import deps
from compress.params import Optimising, Training
from compress.store.cache import Cache
from evaluation.metrics.size import weights_read
from tests.specimens import Specimen, find_specimen

# Each stage is tried on as little as shows its contract.
TRAINING = {"steps": 3, "prompts": 8, "denoising_steps": 4, "documents": 40, "tokens": 16, "pictures": 8}
TRAJECTORIES = {"updates": 3, "batch": 4, "captions": 8, "teacher_steps": 4}
BUILDS = ("build.", "export.", "quantize.nncf", "quantize.bitsandbytes")
OTHER = {"samples": 8, "blocks": 4, "new_tokens": 8, "precisions": ["float32"], "height": 24, "width": 16}
OTHER |= {"iters": 3, "length": 16}
LOOKED_AT = {"bits": [4], "timesteps": 1, "samples": 2}  # by stages that measure each layer
# What does nothing on a processor is tried in tests/unit/test_hooked_models.py, with a pretended GPU.
TRIED = [name for name in stage_names() if not find_stage(name).elsewhere("cpu")]
CASES = [(name, task) for name in TRIED for task in tasks_for(find_stage(name).needs)]
# Stages that look at calibration data where a parameter asks for it, and what has no use otherwise.
CALIBRATED_IF_ASKED, CALIBRATION = ("quantize.llamacpp",), ("samples", "length")
# Of tasks that are given images.
DAILY = {
    ("accelerate.steps", "image_to_image"),
    ("prune.width", "inpainting"),
    ("quantize.torchao", "instruction_editing"),
}
COMPILED = "accelerate.compile"  # by each process that opens the model
# In a process of its own with half a minute of imports, or as long with a compiler; tests/pipeline has each in short.
APART = ("quantize.gptq", "quantize.autoround", "build.compiled", "build.fastest")


def slow(name: str, task: str) -> bool:
    """Half a minute of graphs taken and compiled; the stage's other task shows the contract too, and tests/pipeline builds both. What is given
    images is tried in a few cells each day, and in all beside these."""
    if find_task(task).takes and (name, task) not in DAILY:
        return True
    if name in (COMPILED, *APART):
        return True
    return name.startswith(BUILDS) and task != tasks_for(find_stage(name).needs)[-1]


def marks(name: str, task: str) -> Iterator[pytest.MarkDecorator]:
    if slow(name, task):
        yield pytest.mark.slow
    if lacking := [library for library in find_stage(name).libraries if not deps.version(library)]:
        yield pytest.mark.skip(reason=f"{', '.join(lacking)} compiles for ten minutes")


def steps_of(doc: str, specimen: Specimen | None = None) -> list[dict[str, dict[str, object]]]:
    """The recipe that ends a stage's docstring, with no more to do than shows its contract on a specimen."""
    lines = re.findall(r"^    - .*$", doc, re.MULTILINE)
    found: list[dict[str, dict[str, object]]] = yaml.safe_load(textwrap.dedent("\n".join(lines)))
    for step in found:
        for stage, params in step.items():
            known = find_stage(stage).params
            taught = TRAINING if issubclass(known, Training) else TRAJECTORIES
            little = taught if issubclass(known, Optimising) else OTHER
            unused = CALIBRATION if stage in CALIBRATED_IF_ASKED else ()
            params |= {k: v for k, v in little.items() if k in known.model_fields and k not in unused}
            params |= LOOKED_AT if stage.startswith("analyze.") else {}
            if specimen and stage.startswith(BUILDS):
                params |= {k: v for k, v in specimen.built.items() if k in known.model_fields}
            torchs = "torch" in find_stage(stage).formats  # whose layers have the names that the specimen's have
            if specimen and torchs and stage.startswith("quantize.") and "ignore" in known.model_fields:
                params |= specimen.quantized
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: find_specimen(name).model(tmp_path_factory.mktemp(name)) for name in task_names()}


@dataclass(frozen=True)
class Tried:
    """One docstring's recipe, run in one cache, again in the same, and in another."""

    first: tuple[Done, ...]
    again: tuple[Done, ...]
    elsewhere: tuple[Done, ...]  # of a stage that declares equal bytes; nothing else would be compared with them
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id="-".join(case), marks=[*marks(*case)]) for case in CASES],
)
def tried(request: pytest.FixtureRequest, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Tried:
    name, task = request.param
    specimen = find_specimen(task)
    folder = tmp_path_factory.mktemp("contract")
    body = {
        "schema": 1,
        "name": "contract",
        "model": str(models[task]),
        "data": {"calibration": specimen.calibration(folder), "train": specimen.train(folder)},
        "stages": steps_of(find_stage(name).doc, specimen),
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(body))
    before = digest_files(models[task])

    def run(cache: str) -> tuple[Done, ...]:
        store = Cache(folder / cache)
        return execute(compress.plan(recipe, cache=store.root), store, silent)

    elsewhere = run("other") if find_stage(name).reproducible == "bytes" else ()
    return Tried(run("one"), run("one"), elsewhere, before, digest_files(models[task]))


def test_a_stage_leaves_the_formats_it_declares_and_says_how_it_came_about(tried: Tried) -> None:
    for done in tried.first:
        for component in done.components:
            declared = find_stage(done.stage).formats.values() or engine_names()
            assert done.artifact.components[component].format in declared or CHOSEN in declared
    last = tried.first[-1]
    assert [p.stage for p in last.artifact.lineage] == [done.stage for done in tried.first]
    assert last.artifact.lineage[-1].key == last.key


def test_the_size_metric_counts_the_weights_of_each_component(tried: Tried) -> None:
    for done in tried.first:
        for component in done.components:
            assert sum(f.stat().st_size for f in weights_read(done.artifact, (component,))) > 0


def test_the_input_is_as_it_was(tried: Tried) -> None:
    assert tried.before == tried.after
    assert len(tried.before) > 3


def test_the_second_run_is_a_cache_hit(tried: Tried) -> None:
    assert not any(done.cached for done in tried.first)
    assert all(done.cached for done in tried.again)
    assert [d.artifact.digest for d in tried.again] == [d.artifact.digest for d in tried.first]


def test_a_stage_that_declares_equal_bytes_gives_equal_bytes(tried: Tried) -> None:
    for one, other in zip(tried.first, tried.elsewhere, strict=False):
        assert other.key == one.key
        assert other.artifact.digest == one.artifact.digest
    assert tried.elsewhere or find_stage(tried.first[-1].stage).reproducible == "behaviour"


@pytest.mark.parametrize("name", stage_names())
def test_a_model_of_no_task_gets_one_error_with_its_place(name: str, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["BertForMaskedLM"], "model_type": "bert"}')
    steps = steps_of(find_stage(name).doc)
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"schema": 1, "name": "x", "model": "./bert", "stages": steps}, sort_keys=False)
    )
    with pytest.raises(RecipeError, match="BertForMaskedLM") as caught:
        compress.check(tmp_path / "recipe.yaml", cache=tmp_path / "cache")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].place.endswith("recipe.yaml:3:8")
    assert caught.value.problems[0].fix


def test_every_stage_has_a_recipe_in_its_docstring() -> None:
    assert CASES
    for name in stage_names():
        assert name in steps_of(find_stage(name).doc)[-1]
