"""How a pipeline is guided, read from its class, its config and its own call, and what a stage that is reported a scale makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.distillation.few_steps import guiding
from compress.model.describing import describe
from compress.pipelines.call_arguments import call_faults, tells_guidance
from tests.fakes import pipeline


def generator(folder: Path, kind: str = "StableDiffusionPipeline", embeds: bool = False, **call: Any) -> Artifact:
    pipeline(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    (folder / "unet/config.json").write_text(json.dumps({"guidance_embeds": True} if embeds else {}))
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    return describe(folder).calling(**call)


@pytest.mark.parametrize(
    ("kind", "embeds", "own", "scale", "asked"),
    [
        ("StableDiffusionPipeline", False, {}, 7.5, {"guidance_scale": 3.0}),
        ("StableDiffusionPipeline", False, {"guidance_scale": 2}, 2.0, {"guidance_scale": 3.0}),
        ("FluxPipeline", True, {}, 3.5, {"guidance_scale": 3.0}),
        ("FluxPipeline", False, {}, 1.0, {"true_cfg_scale": 3.0, "negative_prompt": ""}),
        ("FluxPipeline", False, {"negative_prompt": "ugly"}, 1.0, {"true_cfg_scale": 3.0, "negative_prompt": "ugly"}),
        ("DDPMPipeline", False, {}, None, {}),
    ],
)
def test_a_scale_is_given_to_the_argument_that_guides(
    kind: str, embeds: bool, own: dict[str, Any], scale: float | None, asked: dict[str, Any], tmp_path: Path
) -> None:
    """A pipeline that is guided truly leads away from its own negative prompt, or from nothing."""
    how = guiding(generator(tmp_path, kind, embeds, **own))
    assert how.scale == scale
    assert how.call(3.0) == asked
    assert how.call(None) == {}
    assert how.call(3.0, "blue")["negative_prompt"] == "blue"


@pytest.mark.parametrize("name", ["distill.steps", "distill.guidance"])
def test_a_negative_prompt_of_the_models_own_is_taught_and_asked_for_no_more(name: str, tmp_path: Path) -> None:
    """Evaluating the student would be refused: without guidance nothing leads away from it."""
    source, stage = generator(tmp_path, guidance_scale=7.0, negative_prompt="ugly"), find_stage(name)
    reported = stage.forecast(source, stage.params(**({"steps": 2} if name == "distill.steps" else {})))
    assert reported.settings is not None
    assert reported.settings.call["negative_prompt"] is None
    assert not list(call_faults(replace(source, settings=reported.settings), reported.settings.call))


TWICE: dict[str, Any] = {"true_cfg_scale": 4.0, "negative_prompt": "ugly"}


@pytest.mark.parametrize(
    ("embeds", "own", "why"),
    [
        (True, TWICE, "guides it once more (true_cfg_scale 4)"),
        (True, {**TWICE, "negative_prompt": ""}, "guides it once more"),  # away from nothing, but away
        (True, {"true_cfg_scale": 4.0}, ""),  # which the pipeline ignores without a negative prompt
        (True, {**TWICE, "true_cfg_scale": 1.0}, ""),
        (True, {"negative_prompt": "ugly"}, ""),
        (False, TWICE, ""),
    ],
)
def test_a_model_that_is_guided_twice_is_not_taught_by_its_trajectories(
    embeds: bool, own: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """Reported when planned, of the student and of a teacher that is given beside it; other stages follow its calls as they are."""
    plain = generator(tmp_path, "FluxPipeline", embeds)
    source = plain.calling(**own)
    for name, params in (("distill.steps", {"steps": 2, "guidance": 3.0}), ("distill.features", {"guidance": 3.0})):
        stage = find_stage(name)
        asked, fits = stage.params(**params), bool(why) and name == "distill.steps"
        message = stage.refuse(source, asked)
        assert why in message if fits else "once more" not in message
        assert not fits or getattr(message, "fix", "") == "take negative_prompt out of the call in its pare.json"
        misfits = [one.message for one in stage.unfit(plain, asked, {"teacher": source})]
        assert any("once more (true_cfg_scale" in one for one in misfits) == fits
        assert "once more" not in stage.refuse(plain, asked)


def test_a_denoiser_is_reported_its_guidance_where_its_class_is_by_default(tmp_path: Path) -> None:
    for kind, denoiser, reported in (
        ("Flux2Pipeline", "Flux2Transformer2DModel", True),
        ("FluxPipeline", "FluxTransformer2DModel", False),
        ("StableDiffusionPipeline", "UNet2DConditionModel", False),
    ):
        artifact = generator(tmp_path / kind, kind).becoming({"unet": denoiser})
        assert tells_guidance(artifact) == reported


def test_a_pipeline_that_is_not_guided_by_itself_has_no_guidance_to_teach(tmp_path: Path) -> None:
    stage, source = find_stage("distill.guidance"), generator(tmp_path, "FluxPipeline")
    assert "called without guidance (true_cfg_scale 1)" in stage.refuse(source, stage.params())
    assert "called without guidance" not in stage.refuse(source, stage.params(guidance=3.0))


@pytest.mark.parametrize(
    ("call", "guidance", "why"),
    [
        ({"guidance_scale": 1.0}, 3.0, "would guide it once more"),
        ({"guidance_scale": 1.0}, None, ""),
        ({"guidance_scale": 1.0}, 1.0, ""),
        ({}, 3.0, ""),
    ],
)
def test_a_model_whose_guidance_is_folded_in_is_not_generated_with_more(
    call: dict[str, Any], guidance: float | None, why: str, tmp_path: Path
) -> None:
    source = generator(tmp_path, **call)
    features, decoder = find_stage("distill.features"), find_stage("distill.decoder")
    misfits = list(features.unfit(source, features.params(guidance=guidance), {"teacher": source}))
    refused = decoder.refuse(source, decoder.params(guidance=guidance, kind="own"))
    assert [why in one.message for one in misfits] == [True] * bool(why)
    assert why in refused if why else refused == ""
