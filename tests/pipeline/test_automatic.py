"""`bits: auto` on tiny models: the budget is met, what costs most stays wide, and stock libraries open what mixes widths and give the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization
from compress.errors import UserError
from compress.machine.deps import installed
from compress.model import bit_widths
from compress.model.describing import bits_by_layer, describe
from compress.quantization.linears import linears
from compress.quantization.packed_sizes import loaded_together, weight_bytes
from compress.quantization.reach import reach
from compress.quantization.sensitivity import read
from tests.families import tiny_text
from tests.opened_alone import called_here, opened_alone
from tests.packed_codes import dequantized
from tests.stages import apply, forecast
from tests.tiny import tiny_diffusion

AUTOROUND, TORCHAO = "quantize.autoround", "quantize.torchao"
GROUPS: dict[str, Any] = {"group_size": 32, "symmetric": True}
CALL = {"input_ids": torch.arange(20)[None]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model wide enough for every quantizer, and what its layers cost in three widths."""
    folder = tmp_path_factory.mktemp("measured")
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    model = describe(tiny_text(folder / "model", "qwen2", **wide))
    return apply("analyze.sensitivity", model, folder / "known", samples=2, bits=(8, 4, 3), **GROUPS)[0]


def middle(stage: str, artifact: Artifact, **params: Any) -> float:
    """A budget half way between the ends that a refused one names."""
    with pytest.raises(UserError) as caught:
        forecast(stage, artifact, bits="auto", budget=0.01, **params)
    least, most = caught.value.problems[0].fix.removeprefix("give a budget from ").split(" to ")
    return round((float(least) + float(most)) / 2, 3)


@pytest.mark.skipif(not installed("auto_round"), reason="pip install 'pare[autoround]'")
def test_autoround_meets_a_budget_with_layers_of_several_widths_that_stock_transformers_opens(
    measured: Artifact, tmp_path: Path
) -> None:
    budget = middle(AUTOROUND, measured, **GROUPS)
    made, notes = apply(AUTOROUND, measured, tmp_path / "out", method="rtn", bits="auto", budget=budget, **GROUPS)
    size, whole = weight_bytes(made, LANGUAGE_MODEL), weight_bytes(measured, LANGUAGE_MODEL)
    assert 0.98 * budget * whole <= size <= 1.005 * budget * whole
    assert notes[0].facts["bytes"] == size
    bits = bits_by_layer(made.config(LANGUAGE_MODEL))
    layers = [one for one in linears(measured) if not one.head]
    assert bits.keys() == {one.name for one in layers}
    assert len(set(bits.values())) > 1
    assert all(len({bits[name] for name in names}) == 1 for names in loaded_together(layers).values())
    assert made.components[LANGUAGE_MODEL].quantization == Quantization("compressed-tensors", 0, "compressed-tensors")
    assert describe(made.path).components == made.components
    counted: Counter[str] = Counter()
    for one in layers:
        counted[f"int{bits[one.name]}"] += one.weights
    found = bit_widths.stored(made, LANGUAGE_MODEL)
    assert {kind: count for kind, count in found.items() if kind != "float32"} == counted
    (alone,) = opened_alone([(made, LANGUAGE_MODEL)], [CALL], tmp_path / "alone")
    assert torch.equal(alone, called_here(made, LANGUAGE_MODEL, CALL))
    assert torch.allclose(alone, by_codes(measured, made, bits), atol=1e-4)


def by_codes(source: Artifact, made: Artifact, bits: dict[str, int]) -> torch.Tensor:
    """What the model gives with each layer's codes read by plain loops, as wide as its own bits say."""
    from transformers import AutoModelForCausalLM

    model, tensors = AutoModelForCausalLM.from_pretrained(source.path), load_file(made.path / "model.safetensors")
    with torch.no_grad():
        for name, width in bits.items():
            model.get_submodule(name).weight.copy_(
                torch.from_numpy(dequantized(tensors, name, bits=width, group_size=32))
            )
        found: torch.Tensor = model(**CALL).logits
    return found


@pytest.mark.skipif(not installed("torchao"), reason="pip install 'pare[torchao]'")
@pytest.mark.parametrize("mode", ["int8_weights", pytest.param("int8_dynamic", marks=pytest.mark.slow)])
def test_torchao_packs_the_layers_that_bear_it_best_within_a_budget(
    measured: Artifact, mode: str, tmp_path: Path
) -> None:
    budget = middle(TORCHAO, measured, mode=mode)
    made, notes = apply(TORCHAO, measured, tmp_path / "out", mode=mode, bits="auto", budget=budget)
    size, whole = weight_bytes(made, LANGUAGE_MODEL), weight_bytes(measured, LANGUAGE_MODEL)
    assert 0.98 * budget * whole <= size <= 1.005 * budget * whole
    packed = {
        name.removesuffix("._weight_qdata") for name in load_file(made.path / "model.safetensors") if "qdata" in name
    }
    all_ = {one.name for one in reach(measured, LANGUAGE_MODEL).packed}
    assert 0 < len(packed) < len(all_)
    assert notes[-1].facts["widths"] == f"{len(packed)} layers in 8 bits, {len(all_ - packed)} layers as they are"
    costs = {name: layer.cost[8] / layer.weights for name, layer in read(measured)[LANGUAGE_MODEL].layers.items()}
    mean = [sum(costs[name] for name in some) / len(some) for some in (packed, all_ - packed)]
    assert mean[0] < mean[1]
    (alone,) = opened_alone([(made, LANGUAGE_MODEL)], [CALL], tmp_path / "alone")
    assert torch.equal(alone, called_here(made, LANGUAGE_MODEL, CALL))


@pytest.mark.skipif(not installed("torchao"), reason="pip install 'pare[torchao]'")
def test_a_denoisers_layers_share_a_budget_too(tmp_path: Path) -> None:
    model = describe(tiny_diffusion(tmp_path / "model")).calling(num_inference_steps=2)
    known, _ = apply(
        "analyze.sensitivity", model, tmp_path / "known", samples=1, timesteps=1, bits=(8,), symmetric=True
    )
    budget = middle(TORCHAO, known)
    made, notes = apply(TORCHAO, known, tmp_path / "out", bits="auto", budget=budget)
    whole = weight_bytes(known, "unet")
    assert 0.98 * budget * whole <= weight_bytes(made, "unet") <= 1.005 * budget * whole
    assert "layers as they are" in str(notes[-1].facts["widths"])
