"""`bits: auto`, as plans of every quantizer that has it tell it: what is out of reach, what was not measured, and what was measured otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.artifact import LANGUAGE_MODEL, Artifact, Provenance
from compress.errors import UserError
from compress.quantization.automatic import Asked, Sizes, automatic_faults, share_out
from compress.quantization.budgets import WITHIN
from compress.quantization.linears import Linear, linears
from compress.quantization.packed_sizes import loaded_together
from compress.quantization.sensitivity import STAGE
from tests.headers import llama
from tests.stages import forecast

STAGES: Mapping[str, dict[str, Any]] = {
    "quantize.nncf": {"mode": "int4_weights", "group_size": 32, "symmetric": True},
    "quantize.autoround": {"group_size": 32},
    "quantize.torchao": {},
}
REMEDY = re.compile(r"give a budget from (\S+)( \w+)? to (\S+)( \w+)?")


def measured(artifact: Artifact, **params: Any) -> Artifact:
    """As analyze.sensitivity leaves it, and as an engine where it is to be one."""
    look = {"bits": [8, 4], "group_size": 32, "symmetric": True, "components": [], **params}
    return replace(artifact, lineage=(*artifact.lineage, Provenance(STAGE, 1, look, "")))


@pytest.fixture
def models(tmp_path: Path) -> Mapping[str, Artifact]:
    """By stage, a measured model that it takes."""
    model = measured(llama(tmp_path / "model"))
    return {name: model.replacing({LANGUAGE_MODEL: "openvino"}) if "nncf" in name else model for name in STAGES}


def faults(stage: str, artifact: Artifact, **params: Any) -> list[tuple[str, str]]:
    try:
        forecast(stage, artifact, **{**STAGES.get(stage, {}), **params})
    except UserError as error:
        return [(problem.message, problem.fix) for problem in error.problems]
    return []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("budget", [0.01, 0.99, "1 kB", "7 GB"])
def test_a_budget_out_of_reach_is_refused_with_both_ends_and_each_end_is_in_reach(
    stage: str, budget: float | str, models: Mapping[str, Artifact]
) -> None:
    if (stage, budget) == ("quantize.torchao", 0.99):
        assert faults(stage, models[stage], bits="auto", budget=budget) == []  # layers may stay as they are
        return
    ((message, fix),) = faults(stage, models[stage], bits="auto", budget=budget)
    assert re.search(r"out of reach: the weights of `model` can take from (about )?0\.\d+ to 0\.\d+ MB", message)
    found = REMEDY.fullmatch(fix)
    assert found, fix
    least, unit, most, other = found.groups()
    assert bool(unit) == bool(other) == isinstance(budget, str)
    for end in (f"{least}{unit}", f"{most}{other}") if unit else (float(least), float(most)):
        assert faults(stage, models[stage], bits="auto", budget=end) == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_measured_otherwise_is_warned_of_with_both_values(stage: str, tmp_path: Path) -> None:
    model = llama(tmp_path / "model")
    model = model.replacing({LANGUAGE_MODEL: "openvino"}) if "nncf" in stage else model
    asked = {
        **STAGES[stage],
        "bits": "auto",
        "budget": {"quantize.nncf": 0.4, "quantize.autoround": 0.6, "quantize.torchao": 0.8}[stage],
    }
    assert forecast(stage, measured(model), **asked).warnings == ()
    (warning,) = forecast(stage, measured(model, group_size=64, symmetric=False), **asked).warnings
    group = stage != "quantize.torchao"  # whose int8 has a scale a row, as what is measured in 8 bits has
    was, is_ = ("group_size: 64, ", "group_size: 32, ") if group else ("", "")
    assert f"measured `model` with {was}symmetric: false, and it is rounded with {is_}symmetric: true" in warning
    assert forecast(stage, measured(model, group_size=64), **STAGES[stage]).warnings == ()  # nothing is chosen by it


def test_widths_that_servers_may_not_have_are_warned_of(tmp_path: Path) -> None:
    model = measured(llama(tmp_path / "model"), bits=[8, 4, 3])
    (warning,) = forecast("quantize.autoround", model, group_size=32, bits="auto", budget=0.6).warnings
    assert warning.endswith("whether yours serves 3 is to be tried")


@pytest.mark.parametrize(
    ("stage", "tried", "needs"),
    [
        ("quantize.nncf", [8], "needs 8, 4"),
        ("quantize.autoround", [4], "needs two or more of 8, 7, 6, 5, 4, 3, 2"),
        ("quantize.torchao", [4, 3], "needs 8"),
    ],
)
def test_bits_that_were_not_measured_are_refused(stage: str, tried: list[int], needs: str, tmp_path: Path) -> None:
    model = llama(tmp_path / "model")
    model = model.replacing({LANGUAGE_MODEL: "openvino"}) if "nncf" in stage else model
    ((message, fix),) = faults(stage, measured(model, bits=tried), bits="auto", budget=0.5)
    assert message == f"{STAGE} measured {', '.join(map(str, tried))} bits of `model`, and a budget {needs}"
    again = [int(bits) for bits in re.findall(r"\d+", fix)]
    assert STAGE in fix
    assert not [one for one, _ in faults(stage, measured(model, bits=again), bits="auto", budget=0.5) if "needs" in one]


@pytest.mark.parametrize("stage", STAGES)
def test_bits_and_budget_go_together_and_follow_a_measurement(
    stage: str, models: Mapping[str, Artifact], tmp_path: Path
) -> None:
    together = [("bits: auto and budget go together", "give both, or neither")]
    assert faults(stage, models[stage], bits="auto") == faults(stage, models[stage], budget=0.5) == together
    ((message, _),) = faults(stage, models[stage], bits="auto", budget="much")
    assert message == "budget: `much` is no size"
    ((message, fix),) = faults(stage, replace(models[stage], lineage=()), bits="auto", budget=0.5)
    assert message == "no analyze.sensitivity of `model` went before it"
    assert fix.startswith("put analyze.sensitivity in front")


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_layouts_that_say_one_width_refuse_more(layout: str, models: Mapping[str, Artifact]) -> None:
    ((message, fix),) = faults(
        "quantize.autoround", models["quantize.autoround"], layout=layout, bits="auto", budget=0.4
    )
    assert f"layout {layout} says one width for all layers" in message
    assert "layout: compressed-tensors" in fix


def test_sizes_of_layers_that_an_earlier_stage_will_cut_are_left_to_the_run(models: Mapping[str, Artifact]) -> None:
    for stage, model in models.items():
        config = {**model.config(LANGUAGE_MODEL), "num_hidden_layers": 1}
        cut = replace(model, planned={LANGUAGE_MODEL: config})
        assert faults(stage, cut, bits="auto", budget=0.01) == []


def test_what_servers_load_as_one_layer_gets_one_width(tmp_path: Path) -> None:
    layers = [one for one in linears(llama(tmp_path / "model")) if not one.head]
    together = loaded_together(layers)
    assert sorted(name for names in together.values() for name in names) == sorted(one.name for one in layers)
    block = "model.layers.0"
    assert together[f"{block}.self_attn.qkv_proj"] == tuple(f"{block}.self_attn.{n}_proj" for n in "kqv")
    assert together[f"{block}.mlp.gate_up_proj"] == tuple(f"{block}.mlp.{n}_proj" for n in ("gate", "up"))
    assert len(together) == 2 * 4


def test_a_mode_without_a_measured_width_takes_no_budget(models: Mapping[str, Artifact]) -> None:
    stage = "quantize.torchao"
    found = faults(stage, models[stage], mode="float8", bits="auto", budget=0.5, group_size=128)
    assert [message for message, _ in found] == [
        f"mode float8 has no use for {n}" for n in ("group_size", "bits", "budget")
    ]


LAYERS = st.lists(st.dictionaries(st.sampled_from([3, 4, 8]), st.integers(1, 60), min_size=1), min_size=1, max_size=4)


@given(LAYERS, st.integers(0, 50), st.integers(1, 400))
def test_a_plan_refuses_no_budget_that_some_choice_meets_and_every_one_beyond_both_ends(
    layers: list[dict[int, int]], fixed: int, budget: int
) -> None:
    sizes = Sizes({str(n): one for n, one in enumerate(layers)}, fixed, 1000)
    artifact = measured(Artifact(Path("m"), "text_generation", {}), components=["all"])
    asked = Asked(True, f"{budget} B", (3, 4, 8), symmetric=True, group_size=32, every=False)
    refused = list(automatic_faults(artifact, ["all"], asked, lambda name, widths: sizes))
    totals = {fixed + sum(some) for some in product(*(one.values() for one in layers))}
    met = any((1 - WITHIN) * budget <= total <= budget for total in totals)
    beyond = budget < min(totals) or budget > max(totals) / (1 - WITHIN)
    assert not (refused and met)
    assert bool(refused) == beyond
    costs = {name: {bits: 1.0 / bits for bits in one} for name, one in sizes.layers.items()}
    if not met:
        with pytest.raises(UserError, match="budget"):
            share_out(artifact, "all", sizes, costs, f"{budget} B")
        return
    with suppress(UserError):  # greed may stop short of a choice that there is
        found = share_out(artifact, "all", sizes, costs, f"{budget} B")
        assert found.size == fixed + sum(sizes.layers[name][bits] for name, bits in found.bits.items()) <= budget


def test_what_diffusers_leaves_together_shares_one_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves each layer that has the name of one that is left anywhere in its own."""
    from compress.stages.quantize import torchao

    names = (
        "single_transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.10.attn.to_q",
    )
    layers = [Linear(name, 64, 64) for name in names]
    artifact = llama(tmp_path / "model")
    monkeypatch.setattr(torchao, "model_library", lambda artifact, name: "diffusers")
    found = torchao._together(artifact, LANGUAGE_MODEL, layers)
    assert sorted(map(sorted, found.values())) == [sorted(names[:2]), [names[2]]]
    monkeypatch.setattr(torchao, "model_library", lambda artifact, name: "transformers")
    assert torchao._together(artifact, LANGUAGE_MODEL, layers) == {name: (name,) for name in names}
