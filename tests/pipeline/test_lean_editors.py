"""A lean call of a pipeline that is given images makes the stock pipeline's very images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import compress
from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.machine.devices import AS_STORED
from compress.model.describing import describe
from compress.opening import open_images
from compress.opening.lean import BEGIN
from compress.opening.lean_editors import BEGIN as EDITING
from compress.pipelines.lean import SCHEDULERS, lean_faults, takes
from tests.editors import SIDE, tiny_editor
from tests.pipeline.test_few_step_editors import TAUGHT, data_of
from tests.stages import apply

FOUR = "StableDiffusionInpaintPipeline of 4 channels"
KINDS = (*EDITING, FOUR)
CALLS: tuple[dict[str, Any], ...] = (
    {"num_inference_steps": 1, "guidance_scale": 1.0},
    {"num_inference_steps": 4, "guidance_scale": 3.0},
    {"num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": "green"},
    {
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "negative_prompt": "green " * 80,
    },  # cut by the stock pipeline's own reader
)
OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "Img2Img": ({"strength": 0.5}, {"strength": 1.0}),
    "Inpaint": ({"strength": 0.5}, {"strength": 1.0}),
    "InstructPix2Pix": ({"image_guidance_scale": 1.2}, {"image_guidance_scale": 0.5}),
}
Make = Callable[..., Artifact]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    known: dict[str, Artifact] = {}

    def make(name: str, **call: Any) -> Artifact:
        if name not in known:
            folder, kind = tmp_path_factory.mktemp("model"), name.partition(" ")[0]
            found = tiny_editor(folder, kind, **({"in_channels": 4} if name == FOUR else {}))
            known[name] = describe(found)
        return known[name].calling(**call)

    return make


def pair(artifact: Artifact) -> tuple[Any, Any]:
    return open_images(artifact), open_images(artifact.calling_lean())


def given(name: str) -> list[dict[str, Any]]:
    own = next(calls for part, calls in OWN.items() if part in name)
    return [
        {**call, **one} for call in CALLS for one in own if int(call["num_inference_steps"] * one.get("strength", 1))
    ]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_images_are_the_same_to_the_bit(name: str, count: int, made: Make) -> None:
    stock, lean = pair(made(name))
    for call in given(name):
        items = stock.examples[:count]
        wanted, latents = stock.images(items, 0, **call)
        for _ in range(2):  # anew, and with what the first call left behind
            found, decoded = lean.images(items, 0, **call)
            assert lean.pipeline.stock_because == ""
            assert np.array_equal(found, wanted)
            assert np.array_equal(decoded, latents)
        assert wanted.std() > 1


@pytest.mark.parametrize("name", EDITING)
@pytest.mark.parametrize("output", ["pil", "np", "pt", "latent"])
def test_what_is_given_is_given_in_the_same_form(name: str, output: str, made: Make) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    call: dict[str, Any] = {"image": image, "num_inference_steps": 2, "output_type": output}
    if "Inpaint" in name:
        call |= {"mask_image": Image.fromarray(np.eye(SIDE, dtype=np.uint8) * 255), "height": SIDE, "width": SIDE}
    found = []
    for model in pair(made(name)):
        one = model.pipeline("a red three", generator=torch.Generator().manual_seed(0), **call)
        two = model.pipeline(["a", "b"], **{**call, "image": [image] * 2}, generator=_two(), return_dict=False)
        found.append((one, two))
    (one, two), (other, others) = found
    assert type(one) is type(other)
    assert one.keys() == other.keys()
    assert len(two) == len(others)
    for first, second in ((one.images, other.images), (two[0], others[0])):
        assert type(first) is type(second)
        assert np.array_equal(*(np.stack([np.asarray(image) for image in images]) for images in (first, second)))


def _two() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(2)]


@pytest.mark.parametrize("name", KINDS)
def test_components_are_called_with_the_same_arguments(name: str, made: Make) -> None:
    """So an engine that was built from stock calls takes lean ones."""
    stock, lean = pair(made(name))
    parts = stock.artifact.working
    call = {"num_inference_steps": 4, "guidance_scale": 3.0}
    seen = [list(model.calls_of(parts, stock.examples[:2], 0, **call)) for model in (stock, lean)]
    assert [part for part, _ in seen[0]] == [part for part, _ in seen[1]]
    for (_, one), (_, other) in zip(*seen, strict=True):
        says = [{n: v for n, v in call.items() if isinstance(v, torch.Tensor)} for call in (one, other)]
        assert says[0].keys() == says[1].keys()
        assert all(torch.equal(says[0][n], says[1][n]) for n in says[0])


def test_what_only_the_stock_call_takes_goes_to_it(made: Make) -> None:
    _, lean = pair(made("StableDiffusionInpaintPipeline"))
    image = Image.new("RGB", (SIDE, SIDE), "red")
    mask = Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 6))
    call = {"image": image, "mask_image": mask, "height": SIDE, "width": SIDE, "num_inference_steps": 2}
    with pytest.warns(UserWarning, match="padding_mask_crop is given"):
        lean.pipeline("a", padding_mask_crop=2, **call)
    with pytest.warns(UserWarning, match="no mask"), pytest.raises(Exception):  # noqa: B017  what the stock call raises
        lean.pipeline("a", **{**call, "mask_image": None})
    with pytest.warns(UserWarning, match="none of 2 steps is run at strength 0.3"), pytest.raises(ValueError):
        lean.pipeline("a", strength=0.3, **call)
    for wrong in (None, "0.5"):
        with pytest.warns(UserWarning, match="strength and image guidance are numbers"), pytest.raises(TypeError):
            lean.pipeline("a", strength=wrong, **call)
    lean.pipeline("a", strength=0.5, **call)
    assert lean.pipeline.stock_because == ""


def test_a_denoiser_of_other_channels_is_left_to_the_stock_call(made: Make) -> None:
    for name, channels in (("StableDiffusionInpaintPipeline", 17), ("StableDiffusionInstructPix2PixPipeline", 9)):
        _, lean = pair(made(name))
        lean.pipeline.unet.register_to_config(in_channels=channels)
        given = {"image": Image.new("RGB", (SIDE, SIDE)), "num_inference_steps": 1}
        mask = {"mask_image": Image.new("L", (SIDE, SIDE)), "height": SIDE, "width": SIDE} if "Inpaint" in name else {}
        with (
            pytest.warns(UserWarning, match=f"takes {channels} channels"),
            pytest.raises(ValueError, match=r"nput channels|expects"),
        ):
            lean.pipeline("a", **given, **mask)


def test_a_first_call_steps_with_the_numbers_that_the_scheduler_then_has(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the scheduler moves them there as it lays noise over latents."""
    for name in ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"):
        _, lean = pair(made(name))
        scheduler = lean.pipeline.scheduler
        laid = type(scheduler).add_noise

        def moving(self: Any, *args: Any, laid: Any = laid) -> Any:
            self.alphas_cumprod = self.alphas_cumprod.clone()
            return laid(self, *args)

        monkeypatch.setattr(type(scheduler), "add_noise", moving)
        seen: list[Any] = []
        kept = lean.pipeline.lean_memory.schedules
        begin = EDITING[name]
        monkeypatch.setitem(BEGIN, name, lambda *given, begin=begin, seen=seen: seen.append(begin(*given)) or seen[-1])
        lean.images(lean.examples[:1], 0, num_inference_steps=4, strength=0.5)
        call = (4, lean.device)
        assert seen[0].schedule is kept.get(scheduler, call, lambda: None)
        monkeypatch.undo()


def test_sizes_that_no_pipeline_takes_are_those_of_what_it_is_given(made: Make) -> None:
    for name in ("StableDiffusionImg2ImgPipeline", "StableDiffusionInstructPix2PixPipeline"):
        assert [*lean_faults(made(name).calling_lean(), {"height": SIDE, "width": SIDE})] == []


def test_a_student_is_taught_of_a_lean_pipeline_too(made: Make, tmp_path: Path) -> None:
    """Its teacher's steps are looked at, and a lean call tells none."""
    source = made("StableDiffusionImg2ImgPipeline").calling_lean()
    options = {**TAUGHT, "updates": 1, "strength": 0.6}
    data = data_of(source, tmp_path / "train")
    student, _ = apply("distill.steps", source, tmp_path / "s", data=data, inputs={"teacher": source}, **options)
    assert student.settings.lean
    lean = open_images(student)
    assert lean.generate_items(lean.examples[:1], 0).std() > 0
    assert lean.pipeline.stock_because == ""


def test_a_stage_leaves_it_and_plans_know_what_it_takes(made: Make, tmp_path: Path) -> None:
    source = made("StableDiffusionInstructPix2PixPipeline")
    asked, _ = apply("accelerate.call", source, tmp_path / "made")
    assert compress.apply("accelerate.call", source, cache=tmp_path / "cache").settings == asked.settings
    assert asked.settings.lean
    assert compress.load(asked).stock_because == ""
    assert [*lean_faults(asked, {"image_guidance_scale": 2.0, "guidance_scale": 3.0})] == []
    crop = made("StableDiffusionInpaintPipeline").calling_lean()
    assert [fault.argument for fault in lean_faults(crop, {"padding_mask_crop": 4})] == ["padding_mask_crop"]
    assert "height" not in takes("StableDiffusionImg2ImgPipeline")
    assert BEGIN.keys() == SCHEDULERS.keys()
    stage = find_stage("accelerate.call")
    other = describe(tiny_editor(tmp_path / "xl", "StableDiffusionXLImg2ImgPipeline"))
    assert "there is a lean call for" in stage.refuse(other, stage.params())


def test_an_engine_makes_the_same_images(made: Make, tmp_path: Path) -> None:
    source = made("StableDiffusionInpaintPipeline")
    built, _ = apply("build.openvino", source, tmp_path / "built", opening=AS_STORED, components=("unet",))
    stock, lean = pair(built)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert np.array_equal(
        lean.generate_items(lean.examples[:1], 0, **call), stock.generate_items(stock.examples[:1], 0, **call)
    )
    assert lean.pipeline.stock_because == ""


def test_two_models_of_other_strengths_are_compared_with_a_warning(made: Make, tmp_path: Path) -> None:
    from compress.commands.evaluate import prepare
    from compress.commands.wanted import Wanted
    from compress.recipe.values import EvalSpec
    from compress.store.cache import Cache

    baseline = made("StableDiffusionImg2ImgPipeline")
    student, _ = apply("accelerate.steps", baseline.calling(strength=0.5), tmp_path / "student", steps=4)
    given = Wanted(metrics={"size": {}}, spec=EvalSpec(samples=2))
    found = prepare(str(student.path), str(baseline.path), given, Cache(tmp_path / "cache"), tmp_path / "out")
    assert any("called with strength 0.5, and the baseline with 0.8" in one for one in found.warnings), found.warnings
    same = prepare(str(student.path), str(student.path), given, Cache(tmp_path / "cache"), tmp_path / "out")
    assert not any("strength" in one for one in same.warnings)
