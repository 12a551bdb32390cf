"""Every stage on every pipeline that is given images, on tiny instances: it runs, and what it leaves makes images of them, or the plan refuses it
in one sentence. A few cells are tried each day, all with `make slow`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import compress
from compress.artifact import Artifact
from compress.catalogue import find_stage, find_task
from compress.errors import RecipeError
from compress.events import silent
from compress.execution.execute import execute
from compress.machine import deps
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_images
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.image_inputs import STRENGTH
from compress.pipelines.index import class_of
from compress.pipelines.lean import SCHEDULERS
from compress.sources.data import open_data
from compress.store.cache import Cache
from tests.contract.test_stage_contract import COMPILED, TRIED, steps_of
from tests.editors import EDITORS, tiny_editor
from tests.specimens import find_specimen

STAGES = tuple(name for name in TRIED if not find_stage(name).needs & {"language_model"})
# The refusals, by what they say: of every pipeline that is given images, and of some.
NEVER: Mapping[str, str] = {
    "quantize.bitsandbytes": "it takes an NVIDIA GPU, and the device is cpu",
}
# And where a transformer stands in the UNet's place, as of those that generate from text alone.
TRANSFORMERS: Mapping[str, str] = {"prune.width": "has no field for its feed-forward width"}
REPORTED: Mapping[str, str] = {  # of FLUX, whose guidance is an input
    "distill.guidance": "makes one pass a step already",
    "accelerate.guidance_interval": "asks its denoiser without a prompt is not known here",
}
# The cells of every day: each task, each family of parts, and each kind of stage.
DAILY = {
    ("StableDiffusionImg2ImgPipeline", "build.openvino"),
    ("StableDiffusionInpaintPipeline", "prune.depth"),
    ("StableDiffusionInpaintPipeline", "distill.decoder"),
    ("StableDiffusionInstructPix2PixPipeline", "accelerate.size"),
    ("StableDiffusionXLImg2ImgPipeline", "prune.width"),
    ("StableDiffusionXLInpaintPipeline", "distill.features"),
    ("StableDiffusionXLInstructPix2PixPipeline", "distill.steps"),
    ("StableDiffusion3Img2ImgPipeline", "accelerate.steps"),
    ("StableDiffusion3InpaintPipeline", "prune.depth"),
    ("FluxImg2ImgPipeline", "distill.guidance"),
    ("FluxFillPipeline", "quantize.torchao"),
    ("FluxKontextPipeline", "accelerate.call"),
}
LONG = ("build.compiled", "build.fastest", COMPILED)  # minutes of a compiler


def case(kind: str, stage: str) -> Any:
    marks = [] if (kind, stage) in DAILY else [pytest.mark.slow, pytest.mark.timeout(1800)]
    if lacking := [library for library in find_stage(stage).libraries if not deps.version(library)]:
        marks.append(pytest.mark.skip(reason=f"{', '.join(lacking)} is not installed"))
    return pytest.param(kind, stage, marks=marks, id=f"{kind.removesuffix('Pipeline')}-{stage}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    class Models(dict[str, Artifact]):
        def __missing__(self, kind: str) -> Artifact:
            return self.setdefault(kind, describe(tiny_editor(tmp_path_factory.mktemp(kind), kind)))

    return Models()


def refusal(stage: str, source: Artifact) -> str:
    """What the plan says of a stage that it refuses; "" of one that runs."""
    transformer = TRANSFORMERS.get(stage, "") if source.main == "transformer" else ""
    kind = class_of(source.path)
    reported = REPORTED.get(stage, "") if kind.startswith("Flux") else ""
    unwalked = "there is a lean call for" if stage == "accelerate.call" and kind not in SCHEDULERS else ""
    return NEVER.get(stage, "") or transformer or reported or unwalked


def fitting(step: dict[str, dict[str, Any]], source: Artifact, stage: str) -> dict[str, dict[str, Any]]:
    """A step of a docstring's recipe; of a transformer, blocks go where the UNet is made narrower, and its own scheduler stays. A student of two
    steps is taught with a strength that leaves one."""
    if "distill.steps" in step and STRENGTH in (call_arguments(class_of(source.path)) or {}):
        step = {"distill.steps": {**step["distill.steps"], STRENGTH: 0.6}}
    if "build.openvino" in step and class_of(source.path) == "FluxKontextPipeline":
        # In bfloat16 its guidance, 2500 as it is embedded, becomes 2496, as in diffusers; random weights make much of that, and the build says so.
        step = {"build.openvino": {**step["build.openvino"], "precision": "float32"}}
    if source.main == "unet":
        return step
    if stage != "prune.width" and "prune.width" in step:
        return {"prune.depth": {"ratio": 0.5, "samples": 2}}
    return {name: {key: value for key, value in given.items() if key != "scheduler"} for name, given in step.items()}


@pytest.mark.parametrize(
    ("kind", "stage"),
    [case(kind, stage) for kind in EDITORS for stage in STAGES if stage not in LONG or kind == next(iter(EDITORS))],
)
def test_each_cell_makes_images_or_is_refused_in_a_sentence(
    kind: str, stage: str, models: dict[str, Artifact], tmp_path: Path
) -> None:
    source = models[kind]
    specimen = find_specimen(source.task)
    data = {"calibration": specimen.calibration(tmp_path), "train": specimen.train(tmp_path)}
    steps = [fitting(step, source, stage) for step in steps_of(find_stage(stage).doc)]
    body = {"schema": 1, "name": "cell", "model": str(source.path), "data": data, "stages": steps}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    store, wanted = Cache(tmp_path / "cache"), refusal(stage, source)
    try:
        plan = compress.plan(tmp_path / "recipe.yaml", cache=store.root)
    except RecipeError as error:
        (problem,) = error.problems
        assert wanted, problem.message
        assert wanted in problem.message
        assert ". " not in problem.message
        assert problem.fix
        return
    assert not wanted, "it is not refused any more"
    made = execute(plan, store, silent)[-1].artifact
    assert made.task == source.task
    last = plan.nodes[-1]
    if last.stage.unavailable_here(last.params):
        return
    found = find_task(source.task)
    items = open_data(data["calibration"], Path(), found.data).first(2)
    images, _ = open_images(made, Opening()).images(items, 0, num_inference_steps=4)
    assert images.shape[0] == 2
    if stage == "distill.decoder":  # a new one, which learnt for three updates: nearly grey
        assert (images[0] != images[1]).any()
        return
    assert images.std() > 5
    assert np.abs(images[0].astype(int) - images[1]).mean() > 5
