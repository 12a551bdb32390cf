"""What is reported of schedulers from their configs is what diffusers' own classes do: no more is refused, and no less."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import compress
from compress.catalogue import find_stage
from compress.errors import RecipeError
from compress.machine import library_classes
from compress.machine.devices import AS_STORED
from compress.model.describing import describe
from compress.opening.schedulers import made
from compress.pipelines.part_checks import pipeline_problems
from compress.pipelines.schedulers import NAMED, changes, faults, left_out, read_class
from compress.planning.step_checks import source_problems
from compress.stages.accelerate.steps import _walked
from tests.fakes import pipeline, scheduled
from tests.families import tiny_image
from tests.stages import apply, forecast

BASE = {"beta_schedule": "scaled_linear", "clip_sample": False}
STAGE = find_stage("accelerate.steps")


def every(**options: tuple[object, ...]) -> list[dict[str, Any]]:
    return [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]


BOTH = (True, False)
SPACED: dict[str, tuple[object, ...]] = {"timestep_spacing": ("leading", "linspace", "trailing")}
ZERO = every(rescale_betas_zero_snr=BOTH, prediction_type=("epsilon", "v_prediction"), **SPACED)
LAST = {"final_sigmas_type": ("zero", "sigma_min"), "lower_order_final": BOTH, "solver_order": (1, 2)}
PREDICTS = every(
    prediction_type=("epsilon", "v_prediction", "sample", "flow_prediction", "nothing"), skip_prk_steps=(True,)
)
SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [*ZERO, *PREDICTS],
    "DDPMScheduler": [*ZERO, {"beta_schedule": "sigmoid"}],
    "LCMScheduler": [*ZERO, {"original_inference_steps": 3}],
    "TCDScheduler": ZERO,
    "EulerDiscreteScheduler": every(use_karras_sigmas=BOTH, use_exponential_sigmas=BOTH, **SPACED),
    "DPMSolverMultistepScheduler": [
        *every(algorithm_type=("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"), **LAST),
        *ZERO,
        {"beta_schedule": "sigmoid"},
    ],
    "DPMSolverSinglestepScheduler": every(algorithm_type=("dpmsolver", "dpmsolver++"), **LAST),
    "UniPCMultistepScheduler": [*every(solver_type=("bh1", "bh2"), predict_x0=BOTH, **LAST), *ZERO, *PREDICTS],
    "PNDMScheduler": [*every(skip_prk_steps=BOTH, **SPACED), *PREDICTS],
    "HeunDiscreteScheduler": [{}, {"use_karras_sigmas": True}, *PREDICTS],
    "DEISMultistepScheduler": [{}, *PREDICTS],
    "EulerAncestralDiscreteScheduler": PREDICTS,
    "KDPM2DiscreteScheduler": PREDICTS,
    "SASolverScheduler": PREDICTS,
    "UnCLIPScheduler": PREDICTS,
}


def walks(kind: str, config: Mapping[str, Any], steps: int) -> bool:
    """Whether diffusers' own class gets through so many steps with numbers."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = getattr(diffusers, kind).from_config(dict(config))
            scheduler.set_timesteps(steps)
            return bool(torch.isfinite(_walked(scheduler)).all())
        except (ValueError, NotImplementedError):
            return False


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_is_refused_fails_and_what_fails_is_refused(kind: str) -> None:
    for settings, steps in itertools.product(SETTINGS[kind], (1, 2, 4)):
        if steps == 1 and settings.get("timestep_spacing") == "linspace":
            continue  # of DDIM it begins where nothing is left to do
        config = {**BASE, **settings, "_class_name": kind}
        assert walks(kind, config, steps) == (not list(faults(config, "", steps))), (settings, steps)


def test_a_schedule_longer_than_the_training_is_refused() -> None:
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10}
    (found,) = faults(config, "here", 11)
    assert (found.place, found.message) == (
        "here",
        "DDIMScheduler cannot do 11 steps: at most 10 (num_train_timesteps)",
    )
    assert not walks("DDIMScheduler", config, 11)
    assert list(faults(config, "", 10)) == []


def test_of_a_class_that_is_not_there_nothing_is_reported() -> None:
    assert read_class("NoSuchScheduler") is None
    assert list(faults({"_class_name": "NoSuchScheduler"}, "", 4)) == []


def saved(kind: str, **settings: Any) -> dict[str, Any]:
    """A scheduler's config as diffusers writes it: every setting, defaults too."""
    import diffusers

    found: dict[str, Any] = json.loads(getattr(diffusers, kind)(**settings).to_json_string())
    return found


OWN = [
    ("DEISMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {}),  # whose own default is no lower order at the end
    ("SASolverScheduler", {}),  # whose algorithm_type is data_prediction
    ("UniPCMultistepScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("KDPM2DiscreteScheduler", {}),
]


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize(("kind", "settings"), OWN)
def test_any_scheduler_becomes_the_named_one(kind: str, settings: dict[str, Any], name: str) -> None:
    config = saved(kind, **settings)
    changed = {**config, **changes(config, name)}
    assert list(faults(changed, "", 4)) == []
    assert walks(NAMED[name], changed, 4)


@pytest.mark.parametrize(("kind", "settings"), OWN)
def test_dpm_solver_plus_plus_is_that_and_no_other_algorithm(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    source = scheduled(tmp_path / "m", **saved(kind, **settings))
    made, (note,) = apply("accelerate.steps", source, tmp_path / "out", steps=4, scheduler="dpm-solver++")
    config = made.config("scheduler")
    assert (config["_class_name"], config["algorithm_type"]) == ("DPMSolverMultistepScheduler", "dpmsolver++")
    assert config["final_sigmas_type"] == "zero"
    assert note.facts["scheduler"] == "DPMSolverMultistepScheduler"
    assert note.facts["settings"]["algorithm_type"] == "dpmsolver++"


def test_what_another_scheduler_does_not_take_is_named(tmp_path: Path) -> None:
    own = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    source = scheduled(tmp_path / "m", **saved("DDIMScheduler", **own))
    assert left_out(source.config("scheduler"), "HeunDiscreteScheduler") == ("rescale_betas_zero_snr",)
    reported = forecast("accelerate.steps", source, steps=4, scheduler="heun").reported
    assert reported.startswith("4 steps of HeunDiscreteScheduler; it takes no rescale_betas_zero_snr")
    reported = forecast("accelerate.steps", source, steps=4, scheduler="euler", spacing="leading").reported
    assert reported == "4 steps of EulerDiscreteScheduler (timestep_spacing leading)"
    assert forecast("accelerate.steps", source, steps=4).reported == "4 steps of DDIMScheduler"


ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "epsilon", "timestep_spacing": "leading"}


def test_a_spacing_that_reaches_the_noise_is_refused_of_a_schedule_without_signal(tmp_path: Path) -> None:
    source = scheduled(tmp_path / "m", _class_name="DDIMScheduler", **ZERO_SNR)
    assert STAGE.refuse(source, STAGE.params(steps=4)) == ""  # which begins a little before it
    assert "divides by zero" in STAGE.refuse(source, STAGE.params(steps=4, spacing="trailing"))
    assert STAGE.refuse(source, STAGE.params(steps=4, spacing="trailing", scheduler="euler")) == ""  # which clips it


def test_a_fault_of_the_model_is_reported_once(tmp_path: Path) -> None:
    source = scheduled(tmp_path / "m", _class_name="DDIMScheduler", **{**ZERO_SNR, "timestep_spacing": "trailing"})
    assert [p.message for p in pipeline_problems(replace(source, components={})) if "divides by zero" in p.message]
    assert STAGE.refuse(source, STAGE.params(steps=4)) == ""


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    folder = pipeline(tmp_path / "sd")
    for name in ("unet", "vae", "text_encoder"):
        (folder / name / "config.json").write_text("{}")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    return folder


def planned(folder: Path, *steps: str) -> compress.Plan:
    """The plan of a recipe of these stages, one line each."""
    file = folder.parent / "recipe.yaml"
    lines = "".join(f"  - accelerate.steps: {step}\n" for step in steps)
    file.write_text(f"schema: 1\nname: x\nmodel: ./{folder.name}\nstages:\n{lines}evaluate: {{metrics: [size]}}\n")
    return compress.plan(file, cache=folder.parent / "cache")


def test_a_second_step_is_planned_on_the_scheduler_of_the_first(generator: Path) -> None:
    found = planned(generator, "{steps: 20, scheduler: lcm}", "{steps: 4, id: again}")
    assert [node.reported for node in found.nodes] == ["20 steps of LCMScheduler", "4 steps of LCMScheduler"]
    with pytest.raises(RecipeError, match="LCMScheduler cannot do 60 steps: at most 50"):
        planned(generator, "{steps: 20, scheduler: lcm}", "{steps: 60, id: again}")


def test_a_models_own_scheduler_is_held_to_its_own_call(generator: Path) -> None:
    (generator / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "LCMScheduler"}')
    index = json.loads((generator / "model_index.json").read_text())
    (generator / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "LCMScheduler"]}))
    assert list(pipeline_problems(describe(generator))) == []
    (found,) = source_problems(describe(generator).calling(num_inference_steps=80), AS_STORED, "", fetched=False)
    assert "cannot do 80 steps" in found.message


def own(generator: Path, **config: Any) -> list[str]:
    """What is reported of a model whose own scheduler this is, in two steps and in one."""
    (generator / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((generator / "model_index.json").read_text())
    named = {**index, "scheduler": ["diffusers", config["_class_name"]]}
    (generator / "model_index.json").write_text(json.dumps(named))
    calls = [{}, {"num_inference_steps": 1}]
    found = [source_problems(describe(generator), AS_STORED, "", fetched=False, call=call) for call in calls]
    return ["; ".join(f"{p.message}: {p.fix}" for p in problems) for problems in found]


@pytest.mark.parametrize("kind", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_models_own_scheduler_that_takes_no_such_prediction_is_reported(kind: str, generator: Path) -> None:
    for message in own(generator, _class_name=kind, prediction_type="sample", skip_prk_steps=True):
        assert message.startswith(
            f"{kind} takes no prediction_type sample: it takes epsilon, v_prediction: give the model"
        )
        assert "DDIMScheduler" in message


@pytest.mark.parametrize(
    "kind", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_no_more_steps_than_the_training_schedule_has(kind: str, generator: Path) -> None:
    own(generator, _class_name=kind, num_train_timesteps=100, skip_prk_steps=True)
    for steps, refused in ((100, False), (101, True)):
        call = {"num_inference_steps": steps}
        found = list(source_problems(describe(generator), AS_STORED, "", fetched=False, call=call))
        assert [p.message for p in found] == [
            f"{kind} cannot do 101 steps: at most 100 (num_train_timesteps)"
        ] * refused


def test_a_scheduler_whose_library_is_not_there_is_reported(generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_classes.deps, "installed", lambda module: module != "torchsde")
    library_classes.lacking_for.cache_clear()
    several, _ = own(generator, _class_name="DPMSolverSDEScheduler")
    library_classes.lacking_for.cache_clear()
    assert (
        "DPMSolverSDEScheduler, which needs the library torchsde, and it is not installed: pip install torchsde"
        in several
    )


def test_a_consistent_students_scheduler_is_saved_with_what_it_takes(tmp_path: Path) -> None:
    config = {"_class_name": "EulerDiscreteScheduler", **dict(diffusers.EulerDiscreteScheduler(beta_end=0.02).config)}
    scheduler = made(config, {"_class_name": "LCMScheduler", "original_inference_steps": 20}, tmp_path)
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    known = read_class("LCMScheduler")
    assert known
    assert {name for name in saved if not name.startswith("_")} <= set(known.defaults)
    assert (saved["beta_end"], saved["original_inference_steps"]) == (0.02, 20)


def test_one_step_of_unipc_needs_no_lower_order_at_its_end(generator: Path) -> None:
    several, one = own(generator, _class_name="UniPCMultistepScheduler", lower_order_final=False)
    assert "without lower_order_final" in several
    assert one == ""


def test_a_scheduler_of_an_unknown_class_is_reported(generator: Path) -> None:
    index = json.loads((generator / "model_index.json").read_text())
    (generator / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "MyScheduler"]}))
    (found,) = pipeline_problems(describe(generator))
    assert found.message == "`scheduler` is of a class diffusers.MyScheduler, which diffusers does not have"


@pytest.mark.parametrize(
    ("kind", "forecasts"), [("DDIMScheduler", True), ("LCMScheduler", True), ("PNDMScheduler", False)]
)
def test_one_step_of_pixart_needs_a_scheduler_that_tells_its_end(kind: str, forecasts: bool) -> None:
    found = [p.message for p in faults({"_class_name": kind, "skip_prk_steps": True}, "", 1, "PixArtAlphaPipeline")]
    assert bool(found) is not forecasts
    assert list(faults({"_class_name": kind, "skip_prk_steps": True}, "", 1, "PixArtSigmaPipeline")) == []


def test_of_pixarts_own_scheduler_one_step_is_refused(tmp_path: Path) -> None:
    source = describe(tiny_image(tmp_path, "pixart-alpha"))
    assert "generates one step only with" in STAGE.refuse(source, STAGE.params(steps=1))
    assert STAGE.refuse(source, STAGE.params(steps=1, scheduler="lcm")) == ""
    assert STAGE.refuse(source, STAGE.params(steps=2)) == ""


def test_one_step_is_not_stretched_to_a_terminal() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(1)
    assert scheduler.sigmas.isnan().any()
    (found,) = faults(config, "", 1)
    assert "begins at its own" in found.message
    assert not list(faults(config, "", 2))
