"""accelerate.guidance_interval: the half or the pass without a prompt is left out, and what comes out is what a pipeline gives unguided there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.errors import RecipeError
from compress.machine.devices import AS_STORED
from compress.model.describing import describe
from compress.model.hook_settings import COMPILE, GRAPH, INTERVAL, STEP_CACHE, hooked
from compress.opening import open_images
from compress.opening.denoising import denoising_of
from compress.opening.hooks import ran_inside
from compress.pipelines.guided_calls import asked_how
from evaluation.observe.operations import count_image
from tests.editors import tiny_editor
from tests.families import MODELS
from tests.graphs import pretended
from tests.stages import apply
from tests.unit.test_hooked_models import problems_of

STEPS = 8
CALL = {"num_inference_steps": STEPS}
HALVES = ("sd", "sdxl", "sd3", "pixart-alpha", "pixart-sigma", "sana")
THIRDS = ("StableDiffusionInstructPix2Pix", "StableDiffusionXLInstructPix2Pix")
TRULY = {"true_cfg_scale": 3.0, "negative_prompt": "paper"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    found = {name: describe(MODELS[name](tmp_path_factory.mktemp(name))) for name in (*HALVES, "flux")}
    return found | {"flux": found["flux"].calling(**TRULY)}


def meant(artifact: Artifact, start: float, stop: float) -> Artifact:
    how = "passes" if "true_cfg_scale" in artifact.settings.call else "halves"
    return hooked(artifact, INTERVAL, (), start=start, stop=stop, how=how)


def latents(opened: Any, *numbers: int, **call: Any) -> torch.Tensor:
    found: torch.Tensor = opened.latents([opened.examples[n] for n in numbers], 0, **{**CALL, **call})
    return found


@pytest.mark.parametrize("family", [*HALVES, "flux"])
def test_at_all_steps_it_is_guided_and_at_none_it_is_not(family: str, models: Mapping[str, Artifact]) -> None:
    artifact = models[family]
    plain = open_images(artifact)
    assert torch.equal(latents(open_images(meant(artifact, 0, 1)), 0, 1), latents(plain, 0, 1))
    off = {"true_cfg_scale": 1.0, "negative_prompt": None} if family == "flux" else {"guidance_scale": 1.0}
    without = latents(open_images(meant(artifact, 0, 1e-9)), 0, 1)  # the first step alone
    first = latents(open_images(meant(artifact, 1, 1)), 0, 1)  # none
    assert torch.equal(first, latents(plain, 0, 1, **off))
    assert not torch.equal(without, first)


@pytest.mark.parametrize("family", [*HALVES, "flux"])
def test_what_is_left_out_is_not_computed(family: str, models: Mapping[str, Artifact]) -> None:
    artifact = models[family]
    opened = open_images(meant(artifact, 0.25, 0.75))
    calls = list(opened.calls_of([artifact.main], opened.examples[:1], 0, **CALL))
    rows = [len(next(call[name] for name in ("sample", "hidden_states") if name in call)) for _, call in calls]
    if family == "flux":
        assert rows == [1] * 12  # two passes in four of eight steps
    else:
        assert rows == [1, 1, 2, 2, 2, 2, 1, 1]
    assert f"4 of {2 * STEPS} rows left out" in ran_inside(opened)
    alone = [latents(opened, 0), latents(opened, 1)]
    assert torch.equal(alone[1], latents(open_images(meant(artifact, 0.25, 0.75)), 1))
    scale = float(alone[0].std())
    torch.testing.assert_close(latents(opened, 0, 1), torch.cat(alone), rtol=1e-4, atol=1e-4 * scale)
    main = artifact.main
    share = (
        count_image(meant(artifact, 0.25, 0.75), AS_STORED, CALL)[main] / count_image(artifact, AS_STORED, CALL)[main]
    )
    assert share == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusion3InpaintPipeline", "FluxImg2ImgPipeline"]
)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_shares_are_of_the_steps_that_a_strength_leaves(kind: str, strength: float, tmp_path: Path) -> None:
    flux = "Flux" in kind
    made = describe(tiny_editor(tmp_path / "model", kind)).calling(strength=strength, **(TRULY if flux else {}))
    opened: Any = open_images(meant(made, 0, 0.5))
    asked = opened.asking(STEPS, {})
    opened.images(opened.examples[:1], 0, num_inference_steps=asked)
    assert f"{STEPS // 2} of {2 * STEPS} rows left out" in ran_inside(opened)


@pytest.mark.parametrize("kind", THIRDS)
def test_of_thirds_one_is_computed(kind: str, tmp_path: Path) -> None:
    made = describe(tiny_editor(tmp_path / "model", f"{kind}Pipeline")).calling(guidance_scale=3.0)
    plain = open_images(made)

    def limited(start: float, stop: float) -> Any:
        return open_images(hooked(made, INTERVAL, (), start=start, stop=stop, how="thirds"))

    assert torch.equal(latents(limited(0, 1), 0, 1), latents(plain, 0, 1))
    assert torch.equal(latents(limited(1, 1), 0, 1), latents(plain, 0, 1, guidance_scale=1.0))
    opened = limited(0.25, 0.75)
    rows = [len(call["sample"]) for _, call in opened.calls_of(["unet"], opened.examples[:1], 0, **CALL)]
    assert rows == [1, 1, 3, 3, 3, 3, 1, 1]
    assert f"8 of {3 * STEPS} rows left out" in ran_inside(opened)
    apart = torch.cat([latents(opened, 0), latents(opened, 1)])
    torch.testing.assert_close(latents(opened, 0, 1), apart, rtol=1e-4, atol=1e-4 * float(apart.std()))
    for off in ({"guidance_scale": 1.0}, {"image_guidance_scale": 0.5}):
        assert torch.equal(latents(limited(0, 0.5), 0, **off), latents(plain, 0, **off))
        assert "called without guidance" in refused(made.calling(**off))
    assert refused(made) == ""


@pytest.mark.parametrize(
    ("hook", "params", "baseline", "said"),
    [
        (INTERVAL, {"stop": 0.6}, {"guidance": 1.0}, "has no guidance to leave out"),
        (INTERVAL, {"start": 0.03, "stop": 0.1}, {"steps": 8}, "none of 8 steps lies within 0.03 to 0.1"),
        (INTERVAL, {"stop": 0.95}, {"steps": 8}, "each of 8 steps lies within 0 to 0.95"),
        (STEP_CACHE, {}, {"steps": 1}, "one step is run"),
        (STEP_CACHE, {"method": "taylorseer", "warmup": 4}, {"steps": 4}, "at each of 4 steps, as at the first 4"),
        (STEP_CACHE, {"method": "mag", "retain": 0.9}, {"steps": 4}, "at each of 4 steps, as at the first 4"),
    ],
)
def test_what_the_call_gives_nothing_to_do_is_refused(
    hook: str,
    params: dict[str, Any],
    baseline: dict[str, float],
    said: str,
    models: Mapping[str, Artifact],
    tmp_path: Path,
) -> None:
    body = {
        "schema": 1,
        "name": "x",
        "model": str(models["sd3" if "method" in params else "sd"].path),
        "stages": [{hook: params}],
        "data": {"calibration": "zoo://digits/validation"},
        "evaluate": {"baseline": baseline, "metrics": ["size"]},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(body))
    with pytest.raises(RecipeError) as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    (problem,) = caught.value.problems
    assert said in problem.message
    assert "leave the stage out" in problem.fix


def test_the_place_is_the_stages_where_a_stage_sets_the_steps(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    body = {
        "schema": 1,
        "name": "x",
        "model": str(models["sd"].path),
        "stages": [{STEP_CACHE: {}}, {"accelerate.steps": {"steps": 1}}],
        "evaluate": {"baseline": {"steps": 20}, "metrics": ["size"]},
    }
    lines = "\n".join(f"{name}: {json.dumps(value)}" for name, value in body.items())
    (tmp_path / "r.yaml").write_text(lines)
    with pytest.raises(RecipeError) as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    (problem,) = caught.value.problems
    assert "one step is run" in problem.message
    assert "r.yaml:4:" in problem.place


def test_a_cache_goes_with_it(models: Mapping[str, Artifact]) -> None:
    for family, cache in (
        ("sd", {"method": "deep", "interval": 2, "levels": 1}),
        ("sd3", {"method": "first_block", "threshold": 0.3}),
        ("flux", {"method": "taylorseer", "interval": 2, "warmup": 2, "order": 1}),
    ):
        both = hooked(meant(models[family], 0, 0.5), STEP_CACHE, (), **cache)
        opened = open_images(both)
        found = latents(opened, 0)
        assert torch.equal(found, latents(opened, 0))
        alone = torch.cat([found, latents(opened, 1)])
        torch.testing.assert_close(latents(opened, 0, 1), alone, rtol=1e-4, atol=1e-4)
        assert "reused" in (report := ran_inside(opened))
        assert "left out where guidance is off" in report


def test_a_call_without_guidance_is_as_it_was(models: Mapping[str, Artifact]) -> None:
    for family, off in (("pixart-alpha", {"guidance_scale": 1.0}), ("sd", {"guidance_scale": 0.5})):
        opened = open_images(meant(models[family], 0, 0.5))
        want = latents(open_images(models[family]), 0, 1, **off)
        assert torch.equal(latents(opened, 0, 1, **off), want)
        assert "0 of" in ran_inside(opened)


def test_graphs_are_replayed_for_either_batch(models: Mapping[str, Artifact]) -> None:
    from unittest import mock

    want = latents(open_images(meant(models["sd"], 0, 0.5)), 0)
    with pretended(), mock.patch("compress.model.hook_settings.kind_of", return_value="cuda"):
        opened = open_images(hooked(meant(models["sd"], 0, 0.5), GRAPH))
        found = latents(opened, 0)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
        assert "calls from 2 CUDA graphs, 0 eager" in ran_inside(opened)


def test_a_stage_leaves_it(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    made, _ = apply(INTERVAL, models["flux"], tmp_path / "made", stop=0.5)
    assert made.settings.hook[0].params == {"start": 0.0, "stop": 0.5, "how": "passes"}
    assert made.settings.needs_pare
    opened = open_images(made)
    latents(opened, 0)
    assert denoising_of(opened.component("transformer")) is not None


def test_pipelines_are_known_by_their_source() -> None:
    assert {asked_how(f"{name}Pipeline") for name in ("StableDiffusion", "StableDiffusion3", "Sana", "Kolors")} == {
        "halves"
    }
    assert {asked_how(f"{name}Pipeline") for name in ("Flux", "QwenImage", "CogView4")} == {"passes"}
    assert {asked_how(f"{name}Pipeline") for name in THIRDS} == {"thirds"}
    assert {asked_how(f"{name}Pipeline") for name in ("ZImage", "Chroma", "StableDiffusionPAG", "No")} == {""}


def refused(artifact: Artifact, **params: Any) -> str:
    stage = find_stage(INTERVAL)
    return stage.refuse(artifact, stage.params(**params))


def test_what_is_not_guided_is_refused(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    sd, flux = models["sd"], models["flux"]
    assert refused(sd) == refused(flux) == refused(models["sana"]) == ""
    assert "called without guidance (guidance_scale 1)" in refused(sd.calling(guidance_scale=1.0))
    assert "called without guidance (true_cfg_scale 1)" in refused(flux.calling(true_cfg_scale=1.0))
    assert "its own call has none" in refused(flux.calling(negative_prompt=None))
    assert "each step" in refused(sd, start=0, stop=1)
    assert "already" in refused(meant(sd, 0, 0.5))
    (problem,) = problems_of(sd.path, [{"accelerate.call": {}}, {INTERVAL: {}}], tmp_path, device="cpu")
    assert "the lean call goes through its steps by itself" in problem.message
    for other in (COMPILE, GRAPH):
        assert problems_of(sd.path, [{other: {}}, {INTERVAL: {}}], tmp_path) == ()
    assert "start: 0.5 is not before stop: 0.5" in refused(sd, start=0.5, stop=0.5)
