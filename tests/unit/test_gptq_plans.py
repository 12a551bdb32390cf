"""What quantize.gptq cannot do is reported when planning, every layer and every pattern at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization
from compress.catalogue import find_stage
from compress.errors import Problem, RecipeError, StageFailed, UserError
from compress.machine import deps
from compress.model.describing import describe
from compress.planning.planned_artifact import expected_of
from compress.quantizers import own_process
from tests.families import tiny_text
from tests.stages import apply, forecast
from tests.tiny import tiny_llama

GPTQ = "quantize.gptq"
Problems = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQModel and optimum count as installed, whether they are or not: nothing here runs them."""
    real = deps.version
    monkeypatch.setattr(deps, "version", lambda name: real(name) or ("1" if name in ("gptqmodel", "optimum") else ""))


@pytest.fixture
def reported(tmp_path: Path, installed: None) -> Problems:
    """The problems of a recipe with these steps on a tiny Llama."""
    tiny_llama(tmp_path / "model")

    def check(*steps: str, data: str = "{calibration: zoo://docstrings/validation}") -> tuple[Problem, ...]:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"schema: 1\nname: x\nmodel: ./model\ndata: {data}\nstages: [{', '.join(steps)}]\n")
        try:
            compress.check(recipe, cache=tmp_path / "cache")
        except RecipeError as error:
            return error.problems
        return ()

    return check


def step(**params: object) -> str:
    return f"{GPTQ}: {{{', '.join(f'{name}: {value}' for name, value in params.items())}}}"


def test_a_recipe_that_fits_is_planned(reported: Problems) -> None:
    assert reported(step(group_size=32)) == ()
    assert reported(step(bits=2, group_size=-1, act_order="true", symmetric="false", damp=0.1)) == ()


def test_every_layer_that_the_group_size_does_not_divide_is_listed(reported: Problems) -> None:
    (problem,) = reported(step(group_size=64))
    assert "group_size 64 does not divide the inputs of 12 of the 14 layers" in problem.message
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"):
        assert (
            f"model.layers.{{0-1}}.self_attn.{name}" in problem.message
            or f"model.layers.{{0-1}}.mlp.{name}" in problem.message
        )
    assert "has 32 inputs" in problem.message
    assert "down_proj" not in problem.message
    assert problem.fix.startswith("group_size: 32 divides all of them; -1 gives each row one scale; or ignore:")
    assert reported(step(group_size=64, ignore='["re:.*(q|k|v|o|gate|up)_proj"]')) == ()


def test_every_pattern_that_names_nothing_is_reported(reported: Problems) -> None:
    problems = reported(step(group_size=32, ignore='["*.o_project", "re:(", "*.o_proj"]'))
    first, second = (p.fix for p in problems)
    assert first.startswith("did you mean `*.o_proj`")
    assert second == "write one, or a glob: *.o_proj"
    assert len(reported(step(group_size=64, ignore='["re:(", "*.k_proj"]'))) == 2  # the groups too
    (problem,) = reported(step(group_size=32, ignore='["model.layers"]'))
    assert "names every layer of the blocks" in problem.message


def test_layers_that_do_not_fill_words_are_listed(reported: Problems) -> None:
    (problem,) = reported(step(bits=3, group_size=32))
    assert problem.message.endswith(
        "3 bits are packed 32 side by side, which does not divide 4 of the 14 layers: "
        "model.layers.{0-1}.self_attn.k_proj has 16 outputs; model.layers.{0-1}.self_attn.v_proj has 16 outputs"
    )
    assert problem.fix == 'give other bits, or ignore: ["*.k_proj", "*.v_proj"]'
    assert reported(step(bits=3, group_size=32, ignore='["*.k_proj", "*.v_proj"]')) == ()


def test_groups_that_no_kernel_takes_are_refused(reported: Problems) -> None:
    (problem,) = reported(step(group_size=16))
    assert "4 bits in groups of 16 do not run" in problem.message
    assert problem.fix == "group_size: 32"
    assert reported(step(group_size=16, bits=8)) == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"bits": 5}, "2, 3, 4 or 8"),
        ({"bits": "auto"}, "opens no GPTQ checkpoint whose layers differ in bits, and quantize.autoround makes one"),
        ({"group_size": 48}, "-1, 16, 32"),
        ({"damp": 0}, "greater than 0"),
        ({"length": 1}, "2"),
    ],
)
def test_what_the_format_does_not_have_is_refused(reported: Problems, params: dict[str, object], message: str) -> None:
    (problem,) = reported(step(**params))
    assert message in problem.message + problem.fix


def test_packed_weights_and_engines_are_refused(reported: Problems) -> None:
    twice = reported(step(group_size=32), step(group_size=32, bits=8))
    assert any("are gptq already, and quantize.gptq cannot change packed weights" in p.message for p in twice)
    assert any("quantize.gptq takes torch" in p.message for p in reported("build.openvino: {}", step(group_size=32)))
    assert any("gptq already" in p.message for p in reported(step(group_size=32), "prune.depth: {ratio: 0.5}"))


def test_data_is_needed_and_must_not_be_what_is_evaluated_on(reported: Problems) -> None:
    assert any("needs calibration data" in p.message for p in reported(step(group_size=32), data="{}"))
    same = "{calibration: zoo://docstrings/test, evaluate: zoo://docstrings/test}"
    assert reported(step(group_size=32), data=same)


def test_a_library_that_lacks_is_reported_with_its_extra(reported: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deps, "version", lambda name: "" if name in ("gptqmodel", "optimum") else "1")
    problems = reported(step(group_size=32))
    assert {p.message for p in problems} == {f"{GPTQ} needs the library {name}" for name in ("gptqmodel", "optimum")}
    assert {p.fix for p in problems} == {"pip install 'pare[gptq]'"}


@pytest.mark.parametrize(
    ("family", "why"),
    [("bert", "and not on BertLMHeadModel"), ("qwen3-moe", "keeps its experts"), ("mamba", "not on Mamba")],
)
def test_a_family_that_does_not_work_is_refused_in_a_sentence(family: str, why: str, tmp_path: Path) -> None:
    stage = find_stage(GPTQ)
    assert why in stage.refuse(describe(tiny_text(tmp_path, family)), stage.params())


def test_a_plan_says_what_is_reached_and_what_it_takes(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    reported = forecast(GPTQ, artifact, group_size=32)
    assert reported.quantization == {LANGUAGE_MODEL: Quantization("gptq", 4, "gptqmodel")}
    assert reported.reported == "14 of 15 linear layers, 69.1% of their weights, 53% of all its weights, at 4 bits"
    longer = forecast(GPTQ, artifact, group_size=32, samples=256, length=1024)
    assert longer.memory_bytes - reported.memory_bytes == 4 * 2 * 32 * (256 * 1024 - 128 * 512)


def test_a_cut_that_a_stage_before_plans_is_what_the_group_size_is_held_against(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    assert forecast(GPTQ, artifact, group_size=32).reported
    narrower = after(artifact, "prune.width", ratio=0.25, parts=["ffn"])
    with pytest.raises(UserError, match=r"does not divide the inputs of 2 of the 14 layers: .*down_proj has 48 inputs"):
        forecast(GPTQ, narrower, group_size=32)
    shorter = after(artifact, "prune.depth", ratio=0.5)
    assert forecast(GPTQ, shorter, group_size=32).reported.startswith("7 of 8 linear layers")


def after(artifact: Artifact, name: str, **params: Any) -> Artifact:
    """As a stage is planned to leave it."""
    stage = find_stage(name)
    checked = stage.params(**params)
    return expected_of(artifact, stage, checked, (LANGUAGE_MODEL,), stage.forecast(artifact, checked))


def test_its_process_gets_paths_that_hold_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: None
) -> None:
    orders: list[dict[str, Any]] = []

    def ordered(
        library: str, module: str, order: Callable[[], dict[str, Any]], *args: object, without: tuple[str, ...]
    ) -> None:
        orders.append({**order(), "without": without})
        raise StageFailed(f"{library} is not run here")

    tiny_llama(tmp_path / "model")
    monkeypatch.setattr(own_process, "in_own_process", ordered)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageFailed, match="GPTQModel is not run here"):
        apply(GPTQ, describe(Path("model")), Path("out"), samples=2, group_size=32)
    (order,) = orders
    assert [order[name] for name in ("folder", "out", "offload")] == [
        str(tmp_path / folder) for folder in ("model", "out-scratch/saved", "out-scratch/offload")
    ]
    assert order["without"] == ("GPTQMODEL_",)


def test_layers_that_nobody_opens_packed_are_warned_of(tmp_path: Path, installed: None) -> None:
    """GPT-2's projections out of a block are stored transposed: transformers opens them as they are alone."""
    stage = find_stage(GPTQ)
    made = {
        name: stage.forecast(describe(tiny_text(tmp_path / name, name)), stage.params(group_size=16, bits=8))
        for name in ("gpt2", "mistral")
    }
    (warning,) = made["gpt2"].warnings
    assert "stay as wide as they are" in warning
    assert "c_proj" in warning
    assert made["mistral"].warnings == ()
