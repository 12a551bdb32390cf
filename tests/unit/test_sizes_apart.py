"""Images of another size: whether they save anything, and whether both sides generate it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compress.catalogue import find_stage
from compress.errors import RecipeError
from compress.planning.plan import make_plan
from compress.recipe.values import BaselineSpec, EvalSpec
from compress.stages.accelerate.size import WASTED
from compress.store.cache import Cache
from tests.fakes import pipeline, recipe, step


def sized(folder: Path, kind: str, *sizes: int, baseline: int | None = None, **asked: int) -> tuple[str, ...]:
    """What a plan warns of where a pipeline of this class is to generate another size; `sizes`: others, square, one stage each before."""
    made = pipeline(folder)
    index = json.loads((made / "model_index.json").read_text())
    (made / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    (made / "unet/config.json").write_text(json.dumps({"sample_size": 128}))
    (made / "vae/config.json").write_text(json.dumps({"block_out_channels": [8, 8, 8, 8]}))
    stage, names = find_stage("accelerate.size"), [f"{number}" for number in range(len(sizes) + 1)]
    given = [*({"height": size, "width": size} for size in sizes), asked]
    steps = [
        step(stage, id=name, after=after, **one)
        for name, after, one in zip(names, ("source", *names), given, strict=False)
    ]
    spec = EvalSpec(baseline=BaselineSpec(height=baseline, width=baseline))
    return make_plan(recipe(made, *steps, evaluate=spec), Cache(folder.parent / "cache")).warnings


@pytest.mark.parametrize(("kind", "binned"), [("PixArtSigmaPipeline", True), ("StableDiffusionPipeline", False)])
def test_fewer_pixels_that_are_generated_all_the_same_are_warned_of(kind: str, binned: bool, tmp_path: Path) -> None:
    warnings = sized(tmp_path / "model", kind, height=512, width=512)
    assert any(WASTED in message for message in warnings) == binned
    assert any("the baseline generates images 1024 wide and 1024 high, and the candidate 512" in w for w in warnings)


def test_a_metric_of_pixels_is_refused_where_the_sides_have_not_one_size(tmp_path: Path) -> None:
    made = pipeline(tmp_path / "model")
    (made / "unet/config.json").write_text(json.dumps({"sample_size": 64}))
    (made / "vae/config.json").write_text(json.dumps({"block_out_channels": [8, 8, 8, 8]}))
    asking = step(find_stage("accelerate.size"), height=256, width=256)
    spec = EvalSpec(metrics={"clip_score": {}, "lpips": {}, "ssim": {}})
    wanted = replace(recipe(made, asking), evaluate=spec)
    with pytest.raises(RecipeError) as caught:
        make_plan(wanted, Cache(tmp_path / "cache"))
    (problem,) = (one for one in caught.value.problems if "pixel by pixel" in one.message)
    assert problem.message.startswith(
        "lpips, ssim compare images pixel by pixel, and the baseline generates images 512"
    )
    assert "evaluate.baseline" in problem.fix


def test_a_size_that_both_sides_generate_is_no_matter(tmp_path: Path) -> None:
    assert sized(tmp_path / "model", "StableDiffusionPipeline", baseline=512, height=512, width=512) == ()


@pytest.mark.parametrize(
    ("before", "baseline", "kept"),
    [((), None, ("0",)), ((), 1024, ("0",)), ((512,), None, ()), ((1024,), None, ("0", "1")), ((), 512, ())],
)
def test_a_size_that_is_generated_as_it_is_saves_nothing(
    before: tuple[int, ...], baseline: int | None, kept: tuple[str, ...], tmp_path: Path
) -> None:
    found = sized(tmp_path / "model", "StableDiffusionPipeline", *before, baseline=baseline, height=1024, width=1024)
    message = "images 1024 wide and 1024 high are what the model generates as it is: this saves nothing"
    assert tuple(one for one in found if "saves nothing" in one) == tuple(f"{name}: {message}" for name in kept)


def test_a_size_that_nobody_knows_of_before_is_not_warned_of(tmp_path: Path) -> None:
    asking = step(find_stage("accelerate.size"), height=512, width=512)
    assert make_plan(recipe(pipeline(tmp_path / "model"), asking), Cache(tmp_path / "cache")).warnings == ()


@pytest.mark.parametrize(
    ("kind", "size", "unavailable"),
    [
        ("HunyuanDiTPipeline", (1280, 1280), False),
        ("HunyuanDiTPipeline", (768, 1280), False),
        ("HunyuanDiTPipeline", (64, 64), True),
        ("HunyuanDiTPipeline", (2048, 2048), True),
        ("SanaPipeline", (1280, 768), False),
        ("SanaPipeline", (2048, 2048), True),
    ],
)
def test_a_size_that_a_pipeline_knows_is_generated_as_it_is(
    kind: str, size: tuple[int, int], unavailable: bool, tmp_path: Path
) -> None:
    warnings = sized(tmp_path / "model", kind, height=size[0], width=size[1])
    assert any(WASTED in message for message in warnings) == unavailable
