"""Pipelines that are given images: each class is opened as its task, gives what stock diffusers gives, and runs the steps that its strength leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import compress
from compress.artifact import Artifact, read_json
from compress.catalogue import find_task
from compress.data.items import Item
from compress.engines.torch.runtime import silent_libraries
from compress.errors import DataError, RecipeError, StageFailed
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.model.exportable import ANY_SIZE
from compress.opening import open_images
from compress.opening.text_to_image import noise_source
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.image_inputs import TEXT_ALONE, steps_for, steps_run, strength_of
from compress.pipelines.index import INDEX, class_of
from compress.planning.step_checks import source_problems
from compress.recipe.values import EvalSpec
from compress.sources.data import open_data
from tests.devices import HERE, Watched
from tests.editors import EDITORS, SIDE, edits, tiny_editor
from tests.stages import apply

FLOAT32 = Opening("float32")
STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("editors")


@pytest.fixture(scope="module", params=EDITORS)
def editor(request: pytest.FixtureRequest, folder: Path) -> Artifact:
    return describe(tiny_editor(folder / request.param, request.param))


@pytest.fixture(scope="module")
def inpainter(folder: Path) -> Artifact:
    return describe(tiny_editor(folder / "inpainter", "StableDiffusionInpaintPipeline"))


@pytest.fixture(scope="module")
def items(folder: Path) -> tuple[Item, ...]:
    return open_data(str(edits(folder / "data", masks=True)), Path(), "masked_images").first(3)


def run_for(artifact: Artifact, steps: int) -> int:
    """The steps that the pipeline's own strength leaves of so many."""
    kind = class_of(artifact.path)
    return steps_run(kind, steps, strength_of(artifact, {}, call_arguments(kind) or {}))


def stock(artifact: Artifact, items: tuple[Item, ...], **call: Any) -> Any:
    """What diffusers itself makes of the items, uint8 [n, height, width, 3]."""
    from diffusers import DiffusionPipeline

    index = read_json(artifact.path / INDEX)
    unavailable = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[1] is None}
    with silent_libraries():
        pipeline = DiffusionPipeline.from_pretrained(artifact.path, **unavailable)
    pipeline.set_progress_bar_config(disable=True)
    images = [Image.fromarray(item.input()) for item in items if item.input]
    given: dict[str, Any] = {"prompt": [item.text for item in items], "image": images}
    if "masks" in find_task(artifact.task).takes:
        given["mask_image"] = [Image.fromarray(item.mask()) for item in items if item.mask]
    if "_auto_resize" in (call_arguments(class_of(artifact.path)) or {}):
        call |= {"_auto_resize": False, "max_area": SIDE * SIDE}
    noise = [noise_source(0, item.id) for item in items]
    with torch.no_grad():
        made = pipeline(**given, **artifact.settings.call, **call, generator=noise, output_type="np").images
    return np.round(np.clip(made, 0, 1) * 255).astype(np.uint8)


def test_each_class_is_of_one_task_and_gives_what_diffusers_gives(editor: Artifact, items: tuple[Item, ...]) -> None:
    assert list(source_problems(editor, FLOAT32, "")) == []
    task: Any = open_images(editor, FLOAT32)
    images, latents = task.images(items, 0, num_inference_steps=STEPS)
    assert images.shape == (3, SIDE, SIDE, 3)
    assert (images == stock(editor, items, num_inference_steps=STEPS)).all()
    assert latents is not None
    alone, _ = task.images(items[1:2], 0, num_inference_steps=STEPS)
    assert np.abs(alone[0].astype(int) - images[1]).max() <= 1
    assert images.std() > 5  # a constant image would agree with anything


def test_what_it_is_given_decides_what_it_makes(editor: Artifact, items: tuple[Item, ...]) -> None:
    task: Any = open_images(editor, FLOAT32)
    made, _ = task.images(items[:1], 0, num_inference_steps=STEPS)
    for other in (
        {"text": "a seven"},
        {"input": items[1].input},
        *([{"mask": items[1].mask}] if "masks" in find_task(editor.task).takes else ()),
    ):
        changed, _ = task.images([replace(items[0], **other)], 0, num_inference_steps=STEPS)
        assert (changed != made).any(), other.keys()


def test_the_steps_that_run_are_the_work(editor: Artifact, items: tuple[Item, ...]) -> None:
    task: Any = open_images(editor, FLOAT32)
    timed = task.timed(items, EvalSpec(timing_batch=2), {"num_inference_steps": 10})
    assert timed.work == run_for(editor, 10)
    assert timed.run()[0] > 0
    counted: list[None] = []
    with task.watch(editor.main, lambda args, kwargs: counted.append(None)):
        task.first_call(**task.brief)
    assert len(counted) == 8
    assert task.probe(ANY_SIZE).shape == (2, SIDE, SIDE, 3)


def test_it_runs_where_it_was_opened(editor: Artifact, items: tuple[Item, ...]) -> None:
    more = {"padding_mask_crop": 2} if class_of(editor.path) == "StableDiffusionInpaintPipeline" else {}
    wanted, _ = open_images(editor, FLOAT32).images(items[:2], 0, num_inference_steps=STEPS, **more)
    with Watched() as watched:
        task: Any = open_images(editor, HERE)
        found, _ = task.images(items[:2], 0, num_inference_steps=STEPS, **more)
    assert watched.seen
    assert (found == wanted).all()


def test_a_timed_call_reads_no_file(inpainter: Artifact, items: tuple[Item, ...]) -> None:
    read: list[str] = []

    def input_() -> Any:
        read.append("input")
        assert items[0].input is not None
        return items[0].input()

    task: Any = open_images(inpainter, FLOAT32)
    timed = task.timed([replace(items[0], input=input_)], EvalSpec(), {"num_inference_steps": 2})
    assert read == ["input"]
    timed.run()
    timed.run()
    assert read == ["input"]


def test_no_class_is_of_two_tasks_and_all_have_a_tiny_instance() -> None:
    kinds = [kind for name in ("image_to_image", "inpainting", "instruction_editing") for kind in kinds_of(name)]
    assert sorted(kinds) == sorted(EDITORS) == sorted(TEXT_ALONE)


def kinds_of(task: str) -> tuple[str, ...]:
    import importlib

    found: tuple[str, ...] = importlib.import_module(f"compress.tasks.{task}").KINDS
    return found


@pytest.mark.parametrize("kind", EDITORS)
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.55, 0.9999, 1.0])
def test_so_many_steps_are_asked_for_that_some_run(kind: str, strength: float) -> None:
    for run in (1, 2, 8):
        asked = steps_for(kind, run, strength)
        assert steps_run(kind, asked, strength) >= run
        assert asked == run or steps_run(kind, asked - 1, strength) < run


def test_a_strength_that_leaves_no_step_still_shows_every_part(folder: Path, items: tuple[Item, ...]) -> None:
    """Stages that look at parts ask for few steps, whatever the strength of the model's own call."""
    made = describe(tiny_editor(folder / "weak", "StableDiffusionImg2ImgPipeline")).calling(strength=0.1)
    task: Any = open_images(made, FLOAT32)
    calls = [name for name, _ in task.calls_of((made.main, "text_encoder"), items, 0, batch=3, num_inference_steps=2)]
    assert calls.count(made.main) == 1
    assert "text_encoder" in calls


def test_pixels_outside_the_mask_are_the_inputs_where_diffusers_promises_it(
    inpainter: Artifact, items: tuple[Item, ...]
) -> None:
    task: Any = open_images(inpainter, FLOAT32)
    whole, _ = task.images(items, 0, num_inference_steps=2)
    pasted, latents = task.images(items, 0, num_inference_steps=2, padding_mask_crop=2, negative_prompt="grey")
    assert latents is not None
    for item, one, other in zip(items, whole, pasted, strict=True):
        assert item.mask is not None
        assert item.input is not None
        kept, before = ~item.mask(), item.input()
        assert (other[kept] == before[kept]).all()
        assert (one[kept] != before[kept]).any()
        assert (other[~kept] != before[~kept]).any()


def test_a_promise_that_is_broken_is_an_error(
    inpainter: Artifact, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Any = open_images(inpainter, FLOAT32)
    monkeypatch.setattr(task.pipeline.image_processor, "apply_overlay", lambda mask, image, made, crop: made)
    with pytest.raises(StageFailed, match="padding_mask_crop promises that nothing changes outside the mask"):
        task.images(items, 0, num_inference_steps=2, padding_mask_crop=2)


def test_what_is_given_is_cut_to_the_size_that_is_generated(folder: Path, items: tuple[Item, ...]) -> None:
    source = describe(tiny_editor(folder / "sized", "StableDiffusionImg2ImgPipeline"))
    made, _ = apply("accelerate.size", source, folder / "sized-out", height=24, width=16)
    assert items[0].input is not None
    wide = np.pad(items[0].input(), ((0, 0), (8, 8), (0, 0)))  # whose middle is the image itself
    for artifact, shape in ((source, (16, 16, 3)), (made, (24, 16, 3))):
        task: Any = open_images(artifact, FLOAT32)
        images, _ = task.images([replace(items[0], input=lambda: wide)], 0, num_inference_steps=4)
        assert images.shape[1:] == shape
    task = open_images(source, FLOAT32)
    one, other = (
        task.images([i], 0, num_inference_steps=4)[0] for i in (items[0], replace(items[0], input=lambda: wide))
    )
    assert (one == other).all()


def test_a_mask_that_is_cut_away_is_told_of_before_and_when_it_runs(
    folder: Path, inpainter: Artifact, tmp_path: Path
) -> None:
    wide = edits(tmp_path / "wide", masks=True, count=2)
    for index, side in enumerate((slice(0, 4), slice(20, 28))):  # at the edge, and in the middle
        mask = np.zeros((SIDE, 3 * SIDE), np.uint8)
        mask[:, side] = 255
        Image.fromarray(mask).save(wide / f"{index}-mask.png")
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (SIDE, 3 * SIDE, 3), np.uint8)).save(
            wide / f"{index}-input.png"
        )
    body = f"schema: 1\nname: x\nmodel: {inpainter.path}\ndata: {{evaluate: {wide}}}\nevaluate: {{metrics: [unmasked_psnr], baseline: {{height: {SIDE}, width: {{}}}}}}\n"
    (tmp_path / "r.yaml").write_text(body.replace("{}", str(SIDE)))
    with pytest.raises(RecipeError, match="leaves nothing to be inpainted") as caught:
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    (problem,) = caught.value.problems
    assert problem.place == f"{wide}/metadata.jsonl:1"
    learnt = f"schema: 1\nname: x\nmodel: {inpainter.path}\ndata: {{train: {wide}}}\nstages: [{{distill.features: {{teacher: source, steps: 1}}}}]\n"
    (tmp_path / "learnt.yaml").write_text(learnt)
    with pytest.raises(RecipeError, match="leaves nothing to be inpainted"):
        compress.plan(tmp_path / "learnt.yaml", cache=tmp_path / "cache")
    (tmp_path / "r.yaml").write_text(body.replace("{}", str(3 * SIDE)))
    compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    items = open_data(str(wide), Path(), "masked_images").first(2)
    with pytest.raises(DataError, match="leaves nothing to be inpainted"):
        open_images(inpainter, FLOAT32).images(items, 0, num_inference_steps=2)


def test_kontext_generates_the_size_that_its_call_says_whoever_opens_it(
    folder: Path, items: tuple[Item, ...], tmp_path: Path
) -> None:
    source = describe(tiny_editor(tmp_path / "kontext", "FluxKontextPipeline"))
    made, _ = apply("accelerate.size", source, tmp_path / "made", height=24, width=16)
    image = Image.fromarray(items[0].input() if items[0].input else np.zeros((SIDE, SIDE, 3), np.uint8))
    pipeline = compress.load(made.path)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        image=image.resize((16, 24)), prompt="red", **{**made.settings.call, "num_inference_steps": 1}
    ).images[0]
    assert found.size == (16, 24)


def test_an_item_without_what_it_takes_is_named(inpainter: Artifact, items: tuple[Item, ...]) -> None:
    task: Any = open_images(inpainter, FLOAT32)
    for lacking, message in (({"input": None}, "no image that another"), ({"mask": None}, "no mask")):
        with pytest.raises(DataError, match=message) as caught:
            task.images([replace(items[0], **lacking)], 0, num_inference_steps=2)  # type: ignore[arg-type]
        assert caught.value.problems[0].place == items[0].id
