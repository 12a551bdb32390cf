"""How a pipeline is called when it is measured: what it cannot take, or would ignore, is reported when planning; what it takes, both sides
take alike."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.artifact import Artifact, Component, Provenance, write_manifest
from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.data.items import Item
from compress.errors import ManyProblems, RecipeError
from compress.model.describing import describe
from compress.opening.text_to_image import TextToImage
from compress.pipelines.call_arguments import call_arguments, call_faults, lost_settings
from compress.pipelines.image_sizes import own_size
from compress.pipelines.schedulers import NAMED
from compress.planning.calls import call_beside, lineage_since
from compress.recipe.values import BaselineSpec, EvalSpec
from compress.store.cache import open_cache
from compress.tasks.text_to_image import Usage, usage
from tests.editors import tiny_editor
from tests.families import CALLS, IMAGES, tiny_image
from tests.stages import DATA
from tests.tiny import tiny_diffusion

LATENT = {"scheduler": "dpm-solver++", "num_inference_steps": 2}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion that generates 16 by 16 pixels."""
    return tiny_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def opened(generator: Path) -> TextToImage:
    return TextToImage(describe(generator))


def named(folder: Path, kind: str, **config: Any) -> Artifact:
    """A pipeline of this class of which there is no more than a denoiser's config."""
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (folder / "transformer").mkdir(exist_ok=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return Artifact(folder, "text_to_image", {"transformer": Component("torch", "transformer", "SomeModel")})


def faults(artifact: Artifact, **call: Any) -> list[str]:
    return [f"{f.argument}: {f.message}: {f.fix}" for f in call_faults(artifact, {**artifact.settings.call, **call})]


@pytest.fixture
def plan(generator: Path, tmp_path: Path) -> Any:
    """Plans a recipe of a baseline and stages on the generator."""

    def made(baseline: dict[str, Any], *stages: Any) -> Any:
        recipe = {"schema": 1, "name": "x", "model": str(generator), "stages": list(stages)}
        recipe["evaluate"] = {"baseline": baseline, "metrics": ["size"]}
        (tmp_path / "r.yaml").write_text(json.dumps(recipe, indent=1))
        return compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")

    return made


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        ("StableDiffusionPipeline", {}, ""),
        ("StableDiffusionPipeline", {"guidance_scale": 1.0}, "guidance_scale is above 1, and it is 1: leave negative_"),
        ("StableDiffusionXLPipeline", {"guidance_scale": 0}, "unless guidance_scale is above 1, and it is 0"),
        (
            "FluxPipeline",
            {},
            "unless true_cfg_scale is above 1, and it is 1: leave negative_prompt out: this pipeline's",
        ),
        ("FluxPipeline", {"true_cfg_scale": 4.0}, ""),
        ("QwenImagePipeline", {}, ""),
        ("ZImagePipeline", {"guidance_scale": 0.5}, ""),
        ("LatentConsistencyModelPipeline", {}, "LatentConsistencyModelPipeline takes no negative_prompt: leave it out"),
        ("NoSuchPipeline", {}, ""),
    ],
)
def test_a_negative_prompt_is_never_ignored(tmp_path: Path, kind: str, call: dict[str, Any], message: str) -> None:
    found = faults(named(tmp_path, kind), negative_prompt="ugly", **call)
    assert [message in one for one in found] == [True] * bool(message)


def test_a_unet_that_is_reported_its_guidance_ignores_a_negative_prompt(tmp_path: Path) -> None:
    artifact = named(tmp_path, "StableDiffusionPipeline", time_cond_proj_dim=256)
    (found,) = faults(artifact, negative_prompt="ugly")
    assert "takes its guidance as an input (time_cond_proj_dim)" in found


@pytest.mark.parametrize(
    ("kind", "config", "ignored"),
    [
        ("FluxPipeline", {"guidance_embeds": False}, True),
        ("FluxPipeline", {}, True),
        ("FluxPipeline", {"guidance_embeds": True}, False),
        ("QwenImagePipeline", {"guidance_embeds": False}, True),
        ("ChromaPipeline", {}, False),
        ("StableDiffusion3Pipeline", {}, False),
    ],
)
def test_a_scale_is_never_ignored(tmp_path: Path, kind: str, config: dict[str, Any], ignored: bool) -> None:
    artifact = named(tmp_path, kind, **config)
    found = faults(artifact, guidance_scale=3.0)
    assert [f"guidance_scale: {kind} ignores guidance_scale" in one for one in found] == [True] * ignored
    assert not faults(artifact.calling(guidance_scale=0.0))  # its maker's own
    assert not faults(artifact)


def test_a_scale_of_the_image_is_ignored_without_guidance_by_the_text(tmp_path: Path) -> None:
    made = describe(tiny_editor(tmp_path / "m", "StableDiffusionInstructPix2PixPipeline"))
    assert isinstance(made, Artifact)
    (found,) = call_faults(made, {"guidance_scale": 1.0, "image_guidance_scale": 2.0})
    assert found.argument == "image_guidance_scale"
    assert "ignores image_guidance_scale unless guidance_scale is above 1, and it is 1" in found.message
    assert not [*call_faults(made, {"guidance_scale": 2.0, "image_guidance_scale": 2.0})]
    own = made.calling(guidance_scale=3.0)  # which the call overrules
    assert len([*call_faults(own, {"guidance_scale": 1.0, "image_guidance_scale": 2.0})]) == 1
    student = replace(made.calling(guidance_scale=1.0), lineage=(Provenance("distill.steps", 1, {"steps": 2}, ""),))
    assert not [*call_faults(student, {"guidance_scale": 1.0, "image_guidance_scale": 2.0})]


def test_a_scale_that_a_pipeline_ignores_is_reported_where_it_is_given(tmp_path: Path) -> None:
    """As the pipeline shows: whatever the scale, its images are the same."""
    model = tiny_image(tmp_path / "model", "flux-schnell")
    recipe = {"schema": 1, "name": "x", "model": str(model), "stages": []}
    recipe["evaluate"] = {"baseline": {"guidance": 3.0}, "metrics": ["size"]}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe, indent=1))
    with pytest.raises(RecipeError) as caught:
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    (found,) = caught.value.problems
    assert ":8:" in found.place
    assert "has no input for it (guidance_embeds)" in found.message
    assert (
        found.fix
        == "leave guidance out; it sets true_cfg_scale of a model whose own call has that (`settings.call` in pare.json)"
    )
    write_manifest(describe(model).calling(true_cfg_scale=2.0, negative_prompt=""))
    assert compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache").warnings == ()
    task = TextToImage(describe(model))
    assert np.array_equal(generated(task), generated(task, guidance_scale=9.0))


def test_an_argument_that_a_pipeline_does_not_take_is_reported() -> None:
    assert call_arguments("NoSuchPipeline") is None
    assert "height" in (call_arguments("StableDiffusionPipeline") or ())


def test_what_a_recipe_gives_is_reported_at_its_line(plan: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        plan({"negative_prompt": "ugly", "guidance": 1.0, "height": 18, "scheduler": "lcm", "steps": 60})
    found = [(p.place.rsplit("r.yaml:")[1].split(":")[0], p.message) for p in caught.value.problems]
    assert found == [
        ("8", "StableDiffusionPipeline ignores a negative prompt unless guidance_scale is above 1, and it is 1"),
        ("11", "LCMScheduler cannot do 60 steps: at most 50 (original_inference_steps)"),
        ("10", "height 18 cannot be generated: it is no multiple of 8"),
    ]


def test_an_engine_is_built_for_one_size(plan: Any, generator: Path) -> None:
    size = {"height": 24, "width": 16}
    assert own_size(describe(generator)) == 16
    with pytest.raises(RecipeError) as caught:
        plan(size, {"build.openvino": {}})
    (found,) = caught.value.problems
    assert found.message.endswith("height 24 is asked for, and the engine of `unet` is built for images of height 16")
    assert found.fix.startswith("put `- accelerate.size: {height: 24, width: 16}` in front")
    plan({"height": 16, "width": 16}, {"build.openvino": {}})
    plan(size, {"build.openvino": {"components": ["text_encoder"]}})  # which sees no image
    found = plan(size, {"accelerate.size": size}, {"build.openvino": {}})
    assert found.nodes[0].reported == "images 16 wide and 24 high"
    with pytest.raises(RecipeError, match="is built for images of height 16"):
        plan({}, {"build.openvino": {}}, {"accelerate.size": size})


@pytest.mark.parametrize("family", IMAGES)
def test_the_size_that_a_family_generates_by_itself_is_known(family: str, tmp_path: Path) -> None:
    artifact = describe(tiny_image(tmp_path, family))
    stock = TextToImage(artifact).stock
    stated = (call_arguments(type(stock).__name__) or {})["height"]
    latents = getattr(stock, "default_sample_size", artifact.config(artifact.main).get("sample_size"))
    assert stated or own_size(artifact) == latents * stock.vae_scale_factor


@pytest.mark.parametrize("family", IMAGES)
def test_every_family_takes_a_negative_prompt_or_says_that_it_does_not(family: str, tmp_path: Path) -> None:
    task = TextToImage(describe(tiny_image(tmp_path, family)))
    call = {**CALLS[family], "num_inference_steps": 2, "guidance_scale": 3.0}
    reported = faults(task.artifact, **call, negative_prompt="a blue seven")
    message = {**call, "true_cfg_scale": 3.0} if reported else call
    assert [
        one for one in faults(task.artifact, **message, negative_prompt="a blue seven") if "ignores a negative" in one
    ] == []
    generated = [
        task.generate_items(DATA.first(2), 0, **message, **more) for more in ({}, {"negative_prompt": "a blue seven"})
    ]
    assert not np.array_equal(*generated)


def test_a_candidate_is_held_to_what_it_takes_over(plan: Any) -> None:
    taken = {"scheduler": "lcm", "steps": 50}
    with pytest.raises(RecipeError, match="the candidate: LCMScheduler cannot do 60 steps"):
        plan(taken, {"accelerate.steps": {"steps": 60}})
    plan(taken, {"accelerate.steps": {"steps": 60, "scheduler": "ddim"}})


def test_a_stage_that_names_a_scheduler_keeps_it(generator: Path) -> None:
    base = describe(generator)
    call = {"scheduler": "unipc", "num_inference_steps": 20, "negative_prompt": "ugly"}

    def candidate(**params: Any) -> dict[str, Any]:
        lineage = (Provenance("accelerate.steps", 2, {"steps": 4, "scheduler": None, **params}, ""),)
        made = replace(base.calling(num_inference_steps=4), lineage=lineage)
        return call_beside(made, lineage_since(made, base), base, call)

    assert candidate() == {"scheduler": "unipc", "num_inference_steps": 4, "negative_prompt": "ugly"}
    assert candidate(scheduler="lcm") == {"num_inference_steps": 4, "negative_prompt": "ugly"}


def test_a_flow_is_integrated_by_its_own_scheduler(tmp_path: Path) -> None:
    (found,) = faults(describe(tiny_image(tmp_path, "sd3")), scheduler="ddim")
    assert "integrates a flow" in found
    (found,) = faults(named(tmp_path, "StableDiffusionPipeline"), scheduler="ddim")
    assert "no scheduler of its own" in found


def test_eval_asks_the_same(generator: Path, tmp_path: Path) -> None:
    spec = EvalSpec(baseline=BaselineSpec(negative_prompt="ugly", guidance=1.0))
    wanted = Wanted({"size": {}}, spec=spec)
    with pytest.raises(ManyProblems, match="ignores a negative prompt"):
        prepare(str(generator), str(generator), wanted, open_cache(tmp_path / "cache"), tmp_path / "out")


def generated(task: TextToImage, **call: Any) -> Any:
    return task.generate_items(DATA.first(1), 0, **{"num_inference_steps": 2, **call})


def test_captions_that_are_cut_are_counted_and_not_shouted(
    opened: TextToImage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Item("long", "a red three on white paper")
    assert opened.cut_short((Item("0", "a red"), long, replace(long, id="again"))) == (
        "`tokenizer` reads 16 tokens and cuts 1 of 2 captions"
    )
    assert opened.cut_short((Item("0", "a red"),)) == ""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    opened.pipeline(prompt=long.text, num_inference_steps=1)
    assert "was truncated because" in caplog.text  # as the library does by itself
    caplog.clear()
    opened.generate_items((long,), 0, num_inference_steps=1)
    assert "was truncated because" not in caplog.text


def test_each_setting_is_what_generates(opened: TextToImage) -> None:
    plain = generated(opened)
    assert generated(opened, height=24, width=32).shape == (1, 24, 32, 3)
    assert not np.array_equal(plain, generated(opened, negative_prompt="a blue seven"))
    assert not np.array_equal(plain, generated(opened, scheduler="dpm-solver++"))
    assert np.array_equal(plain, generated(opened))  # the model's own scheduler is back


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_scheduler_generates_as_the_stage_that_writes_it_does(
    opened: TextToImage, tmp_path: Path, name: str
) -> None:
    from tests.stages import apply

    made, _ = apply("accelerate.steps", opened.artifact, tmp_path / "out", steps=4, scheduler=name)
    assert np.array_equal(
        generated(opened, num_inference_steps=4, scheduler=name), TextToImage(made).generate_items(DATA.first(1), 0)
    )


def test_what_a_named_scheduler_leaves_out_is_message(generator: Path) -> None:
    assert lost_settings(describe(generator), {"scheduler": "ddim"}) == ""
    assert "takes no clip_sample" in lost_settings(describe(generator), {"scheduler": "unipc"})


def test_the_lines_that_call_a_candidate_name_its_scheduler(opened: TextToImage, generator: Path) -> None:
    lines = usage(Usage(str(generator), True, call={**LATENT, "negative_prompt": 'a "b"'}))
    assert lines[2:4] == (
        "from diffusers import DPMSolverMultistepScheduler",
        'generate.scheduler = DPMSolverMultistepScheduler.from_config(generate.scheduler.config, algorithm_type="dpmsolver++")',
    )
    assert "scheduler=" not in lines[4]
    assert 'negative_prompt="a \\"b\\""' in lines[4]
    generate: Any = opened.stock
    own = generate.scheduler
    exec("\n".join(lines[2:4]), {"generate": generate})
    assert type(generate.scheduler).__name__ == "DPMSolverMultistepScheduler"
    generate.scheduler = own
