"""What records say reaches the plan: packed weights, hooks, devices, settings of a task, what is left to build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from compress.artifact import Quantization, Setting, Settings
from compress.catalogue import Forecast, Stage, find_stage
from compress.errors import Problem, RecipeError
from compress.machine.gpus import Gpu
from compress.params import Params
from compress.planning.plan import make_plan
from compress.recipe.values import BaselineSpec, EvalSpec, Recipe
from compress.store.cache import Cache
from tests.fakes import BUILD, CUT, STAGES, TUNE, knowing, language_model, pipeline, recipe, step


class Either(Params):
    components: tuple[str, ...] | Literal["all"] = Field("all", description="parts to work on")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.prepare()
    return store


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    return pipeline(tmp_path / "generator")


def refused(wanted: Recipe, cache: Cache, *stages: Stage) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught, knowing(*(stages or STAGES)):
        make_plan(wanted, cache)
    return caught.value.problems


def only(problems: Sequence[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


# ---------------------------------------------------------------- packed weights, hooks, devices


def packed(llama: Path, method: str = "compressed-tensors") -> Path:
    """The same model, its config saying that its weights are packed."""
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": method, "bits": 4}})
    )
    return llama


@pytest.fixture
def openers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library is there that packed weights ask for."""
    monkeypatch.setattr("compress.machine.deps.version", lambda library: "1.2.3")


@pytest.mark.parametrize("stage", [CUT, BUILD])
def test_packed_weights_are_refused_by_every_stage_that_changes_or_builds(
    llama: Path, cache: Cache, openers: None, stage: Stage
) -> None:
    problem = only(refused(recipe(packed(llama), step(stage, place="r.yaml:3:5")), cache))
    assert problem.place == "r.yaml:3:5"
    assert problem.message == (
        f"the weights of `model` are compressed-tensors already, and {stage.name} cannot change packed weights"
    )
    assert "unquantized" in problem.fix


def test_packed_weights_are_no_matter_to_settings_and_to_a_stage_that_takes_them(
    llama: Path, cache: Cache, openers: None
) -> None:
    taking = replace(CUT, packed=True)
    with knowing(taking, TUNE):
        found = make_plan(recipe(packed(llama), step(TUNE), step(CUT, after="demo.tune")), cache)
    assert len(found.nodes) == 2


def test_weights_that_are_only_planned_to_be_packed_are_refused_too(llama: Path, cache: Cache) -> None:
    def forecast(artifact: Any, params: Any) -> Forecast:
        return Forecast(quantization={"model": Quantization("nf4", 4, "bitsandbytes")})

    packing = replace(CUT, forecast=forecast)
    steps = (step(CUT), step(BUILD, after="demo.cut"))
    problem = only(refused(recipe(llama, *steps), cache, packing, BUILD))
    assert "are nf4 already, and demo.build cannot" in problem.message
    with knowing(packing, TUNE):
        found = make_plan(recipe(llama, step(CUT), step(TUNE, after="demo.cut")), cache)
    assert found.nodes[-1].expected.components["model"].quantization == Quantization("nf4", 4, "bitsandbytes")


def test_packed_weights_whose_library_is_not_there_are_reported_with_its_name(
    llama: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.machine.deps.version", lambda name: "" if name == "gptqmodel" else "1")
    problem = only(refused(recipe(packed(llama, "gptq")), cache))
    assert problem.message == "the weights of `model` are gptq, which gptqmodel opens, and it is not installed"
    assert problem.fix == "pip install 'pare[gptq]', or give the unquantized checkpoint"


def hooking(component: str) -> Stage:
    """A stage that leaves a cache hooked into a component's blocks."""
    hooked = Settings(hook=(Setting("block_cache", component),))
    return replace(TUNE, forecast=lambda artifact, params: Forecast(settings=hooked))


def test_a_hook_in_front_of_an_engine_is_refused(llama: Path, cache: Cache) -> None:
    steps = (step(TUNE), step(BUILD, after="demo.tune", place="r.yaml:4:5"))
    problem = only(refused(recipe(llama, *steps), cache, hooking("model"), BUILD))
    assert problem.place == "r.yaml:4:5"
    assert "block_cache hooks the modules of `model`, and the engine that demo.build makes has none" in problem.message


def test_a_hook_beside_the_component_that_becomes_an_engine_is_not(llama: Path, cache: Cache) -> None:
    with knowing(hooking("other"), BUILD):
        found = make_plan(recipe(llama, step(TUNE), step(BUILD, after="demo.tune")), cache)
    assert found.nodes[-1].expected.settings.hook[0].component == "other"


def test_an_engine_of_the_processor_is_refused_where_the_recipe_runs_on_a_gpu(
    llama: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.machine.gpus.gpus_here", lambda: (Gpu("Some GPU", "SM89"),))
    monkeypatch.setattr("compress.machine.gpus.torch_without_cuda", lambda: "")
    problem = only(refused(recipe(llama, step(BUILD), device="cuda"), cache))
    assert problem.message == "demo.build: OpenVINO runs on cpu, and the device is cuda:0"
    with knowing(CUT):
        there, here = (make_plan(recipe(llama, step(CUT), device=d), cache) for d in ("cuda", "cpu"))
    assert there.opening.device == "cuda:0"
    assert there.nodes[0].key != here.nodes[0].key


def test_a_device_that_is_not_there_is_one_problem_at_its_place(llama: Path, cache: Cache) -> None:
    asked = recipe(llama, step(CUT), device="cuda", place={"device": "r.yaml:4:9"})
    problem = only(refused(asked, cache))
    assert (problem.place, problem.message) == ("r.yaml:4:9", "device: cuda, and nvidia-smi finds no NVIDIA GPU here")


# ---------------------------------------------------------------- settings of other tasks


@pytest.mark.parametrize(
    ("words", "spec", "name"),
    [
        (True, EvalSpec(baseline=BaselineSpec(steps=3)), "evaluate.baseline.steps"),
        (True, EvalSpec(baseline=BaselineSpec(guidance=3.0)), "evaluate.baseline.guidance"),
        (False, EvalSpec(prompt_tokens=8), "evaluate.prompt_tokens"),
        (False, EvalSpec(continuations=8), "evaluate.continuations"),
    ],
)
def test_a_setting_of_another_task_is_refused_at_its_place(
    llama: Path, generator: Path, cache: Cache, words: bool, spec: EvalSpec, name: str
) -> None:
    asked = recipe(llama if words else generator, evaluate=spec, place={name: "r.yaml:9:3"})
    problem = only(refused(asked, cache))
    assert problem.place == "r.yaml:9:3"
    owner = "text_to_image" if words else "text_generation"
    message, _, model = problem.message.partition(", and this model does ")
    assert message.startswith(f"{name} is a setting of ")
    assert owner in message
    assert model == ("text_generation" if words else "text_to_image")


@pytest.mark.parametrize(
    ("words", "spec"),
    [
        (True, EvalSpec(baseline=BaselineSpec(steps=None, scheduler=None, image_guidance=None))),
        (False, EvalSpec(baseline=BaselineSpec(strength=None, padding_mask_crop=None))),
    ],
)
def test_a_setting_of_another_task_that_is_null_is_not_given(
    llama: Path, generator: Path, cache: Cache, words: bool, spec: EvalSpec
) -> None:
    assert spec.baseline.model_fields_set
    assert make_plan(recipe(llama if words else generator, evaluate=spec), cache).warnings == ()


def test_the_same_build_again_takes_what_is_left_and_refuses_where_nothing_is(generator: Path, cache: Cache) -> None:
    building = replace(BUILD, params=Either)
    rest = step(building, id="rest", after="demo.build")
    with knowing(building):
        found = make_plan(recipe(generator, step(building, components=("vae",)), rest), cache)
    assert found.nodes[0].components == ("vae",)
    assert set(found.nodes[1].components) == {"unet", "text_encoder"}
    problem = only(refused(recipe(generator, step(building), rest), cache, building))
    assert problem.message == "demo.build takes torch, and nothing is left: all is openvino"


@pytest.mark.parametrize("method", ["fp8000", "rm -rf", "4", ""])
def test_a_method_that_nobody_knows_is_never_a_package_to_install(method: str, llama: Path, cache: Cache) -> None:
    problem = only(refused(recipe(packed(llama, method)), cache))
    assert problem.message.endswith(f"packed by a method that pare does not know ({method or 'unnamed'})")
    assert "pip" not in problem.fix


LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


@pytest.mark.parametrize(("name", "field"), [
    ("prune.width", "intermediate_size"), ("prune.width", "num_attention_heads"), ("prune.depth", "num_hidden_layers"),
])  # fmt: skip
@pytest.mark.parametrize("value", ["x", None, [], {}, 0])
def test_a_config_that_does_not_read_is_the_models_fault(
    name: str, field: str, value: object, llama: Path, cache: Cache
) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, **LLAMA, field: value}))
    wanted = recipe(
        llama, step(find_stage(name), place="r.yaml:3:5"), data={"calibration": "zoo://docstrings/validation"}
    )
    with pytest.raises(RecipeError) as caught:
        make_plan(wanted, cache)
    (problem,) = caught.value.problems
    assert problem.place == "r.yaml:3:5"
    assert "config" in problem.message + problem.fix or "nothing" in problem.message
