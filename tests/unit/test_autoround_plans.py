"""What quantize.autoround tells and refuses before anything runs; neither auto-round nor torch is needed for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization
from compress.catalogue import find_stage
from compress.errors import UserError
from compress.model.describing import quantization_of
from tests.headers import FFN, KEYS, LLAMA, WIDE, WORDS, headed, llama
from tests.stages import forecast

STAGE = "quantize.autoround"


def faults(artifact: Artifact, **params: Any) -> list[tuple[str, str]]:
    """All that keeps the stage from working, each with its remedy; [] where it can."""
    try:
        forecast(STAGE, artifact, **params)
    except UserError as error:
        return [(problem.message, problem.fix) for problem in error.problems]
    return []


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq", "awq"])
def test_each_layout_takes_the_bits_that_it_has_a_place_for(tmp_path: Path, layout: str, bits: int) -> None:
    takes = {"compressed-tensors": range(2, 9), "gptq": (2, 3, 4, 8), "awq": (4,)}[layout]
    found = faults(llama(tmp_path / "m"), layout=layout, bits=bits, group_size=32)
    if bits in takes:
        assert found == []
    else:
        ((message, fix),) = found
        assert f"layout {layout} has no {bits} bits" in message
        assert "layout: compressed-tensors" in fix


def test_what_it_leaves_is_packed_as_its_layout_says(tmp_path: Path) -> None:
    model = llama(tmp_path / "m")
    packed = {
        layout: forecast(STAGE, model, layout=layout, group_size=32).quantization[LANGUAGE_MODEL]
        for layout in ("compressed-tensors", "gptq", "awq")
    }
    assert packed == {
        "compressed-tensors": Quantization("compressed-tensors", 4, "compressed-tensors"),
        "gptq": Quantization("gptq", 4, "gptqmodel"),
        "awq": Quantization("awq", 4, "gptqmodel"),
    }


def test_a_group_that_divides_no_layer_is_reported_with_every_layer(tmp_path: Path) -> None:
    ((message, fix),) = faults(llama(tmp_path / "m"))  # 128, and only down_proj has as many inputs
    assert "group_size 128 does not divide the inputs of 12 of the 14 layers" in message
    assert "group_size: 32 or 64" in fix
    assert faults(llama(tmp_path / "n"), group_size=-1) == []


def test_layers_that_auto_round_would_pass_over_in_silence_are_reported(tmp_path: Path) -> None:
    model = llama(tmp_path / "m", keys=16)
    ((message, fix),) = faults(model, group_size=32)
    assert "model.layers.0.self_attn.k_proj [16, 64]" in message
    assert "4 are not" in message
    assert fix == 'ignore: ["*.k_proj", "*.v_proj"]'
    assert faults(model, group_size=32, ignore=("*.k_proj", "*.v_proj")) == []


def test_layers_in_no_block_stay_wide_and_are_held_to_nothing(tmp_path: Path) -> None:
    config = {**LLAMA, "architectures": ["OPTForCausalLM"], "model_type": "opt"}
    shapes = {"model.decoder.project_in.weight": (WIDE, 24), "model.decoder.layers.0.fc1.weight": (FFN, WIDE)}
    reported = forecast(STAGE, headed(tmp_path / "m", config, shapes), group_size=32).reported
    share = FFN / (FFN + 24)
    assert reported == f"{share:.1%} of its linear layers' weights, {share:.0%} of all its weights, in 4 bits"


def test_the_memory_goes_with_a_block_and_the_rows_and_not_with_the_depth(tmp_path: Path) -> None:
    model = llama(tmp_path / "m")
    plain, few, many = (
        forecast(STAGE, model, group_size=32, **params).memory_bytes
        for params in ({"method": "rtn"}, {"samples": 1, "batch": 1}, {"samples": 1000, "batch": 1})
    )
    outside = 2 * WORDS * WIDE
    assert 4 * outside < plain < few < many
    assert many - few == 999 * 512 * WIDE * 3 * 4


def test_zero_points_that_transformers_cannot_open_are_refused(tmp_path: Path) -> None:
    model = llama(tmp_path / "m")
    ((message, fix),) = faults(model, symmetric=False, group_size=32)
    assert "symmetric: false" in message
    assert "layout: gptq" in fix
    assert faults(model, symmetric=False, group_size=32, layout="gptq") == []


def test_a_group_of_nothing_is_refused(tmp_path: Path) -> None:
    assert "0 is no group" in faults(llama(tmp_path / "m"), group_size=0)[0][0]


def test_the_share_that_gets_few_bits_is_reported(tmp_path: Path) -> None:
    model = llama(tmp_path / "m")
    reported = forecast(STAGE, model, group_size=32).reported
    layers = 2 * (2 * WIDE * WIDE + 2 * WIDE * KEYS + 3 * WIDE * FFN)
    shares = (
        f"{layers / (layers + WORDS * WIDE):.1%} of its linear layers' weights",
        f"{layers / (layers + 2 * WORDS * WIDE):.0%}",
    )
    assert reported == f"{shares[0]}, {shares[1]} of all its weights, in 4 bits"


def test_a_pattern_that_names_nothing_is_reported(tmp_path: Path) -> None:
    ((message, fix),) = faults(llama(tmp_path / "m"), group_size=32, ignore=("*.k_porj",))
    assert "`*.k_porj` names none" in message
    assert "*.k_proj" in fix


def test_a_pattern_that_is_none_is_reported_beside_the_rest(tmp_path: Path) -> None:
    messages = [message for message, _ in faults(llama(tmp_path / "m"), group_size=48, ignore=("re:(", "nothing"))]
    assert len(messages) == 3
    assert "`re:(` is no regular expression" in messages[0]
    assert "`nothing` names none" in messages[1]
    assert "group_size 48" in messages[2]


@pytest.mark.parametrize("ignore", ["*", "model.layers"])
def test_nothing_left_to_quantize_is_refused(tmp_path: Path, ignore: str) -> None:
    ((message, fix),) = faults(llama(tmp_path / "m"), group_size=32, ignore=(ignore,))
    assert "no linear layer of the blocks is left" in message
    assert "ignore" in fix


@pytest.mark.parametrize(
    ("params", "unavailable"),
    [
        ({"method": "rtn", "iters": 10}, {"iters"}),
        ({"method": "rtn", "samples": 4, "length": 16, "batch": 2}, {"samples", "length", "batch"}),
        ({"method": "awq", "iters": 10}, {"iters"}),
        ({"method": "awq", "samples": 4}, set()),
        ({"iters": 10, "samples": 4, "length": 16, "batch": 2}, set()),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(tmp_path: Path, params: dict[str, Any], unavailable: set[str]) -> None:
    found = faults(llama(tmp_path / "m"), group_size=32, **params)
    assert {message.rpartition(" ")[2] for message, _ in found} == unavailable


def test_all_that_is_wrong_is_reported_at_once(tmp_path: Path) -> None:
    model = llama(tmp_path / "m", keys=16)
    params = {"layout": "awq", "bits": 3, "group_size": 48, "ignore": ("nothing",), "method": "rtn", "iters": 3}
    assert len(faults(model, **params)) == 5


def test_plain_rounding_reads_no_texts() -> None:
    stage = find_stage(STAGE)
    assert stage.data(stage.params(method="rtn")) == ()
    assert stage.data(stage.params(method="awq")) == ("calibration",)


@pytest.mark.parametrize("bits", range(2, 9))
def test_what_vllm_has_no_kernels_for_is_warned_of(tmp_path: Path, bits: int) -> None:
    warned = forecast(STAGE, llama(tmp_path / "m"), bits=bits, group_size=32).warnings
    assert bool(warned) == (bits not in (4, 8))


def test_models_of_conv1d_are_refused_in_one_sentence(tmp_path: Path) -> None:
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": WIDE, "n_layer": 1, "n_head": 4}
    shapes = {"transformer.wte.weight": (WORDS, WIDE), "transformer.h.0.attn.c_attn.weight": (WIDE, 3 * WIDE)}
    ((message, fix),) = faults(headed(tmp_path / "m", {**config, "vocab_size": WORDS}, shapes), group_size=32)
    assert "Conv1D (transformer.h.0.attn.c_attn" in message
    assert "quantize.gptq" in fix


@pytest.mark.parametrize(
    ("kind", "experts"),
    [
        ("mixtral", {"block_sparse_moe.experts.0.w1.weight": (FFN, WIDE)}),
        ("gpt_oss", {"mlp.experts.gate_up_proj": (4, WIDE, 2 * FFN)}),
    ],
)
def test_experts_that_auto_round_does_not_find_are_refused_in_one_sentence(
    tmp_path: Path, kind: str, experts: dict[str, tuple[int, ...]]
) -> None:
    config = {**LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": kind}
    shapes = {f"model.layers.0.{name}": shape for name, shape in experts.items()}
    ((message, fix),) = faults(headed(tmp_path / "m", config, shapes), group_size=32)
    assert f"its experts are stored as model.layers.0.{next(iter(experts)).removesuffix('.weight')}" in message
    assert "quantize.nncf" in fix


@pytest.mark.parametrize(
    ("groups", "bits"),
    [
        ({"group_0": {"weights": {"num_bits": 4}}}, 4),
        ({"group_0": {"weights": {"num_bits": 4}}, "group_1": {"weights": {"num_bits": 4}}}, 4),
        ({"group_0": {"weights": {"num_bits": 4}}, "group_1": {"weights": {"num_bits": 8}}}, 0),
        ({"group_0": {"weights": None}}, 0),
        ({"group_0": None}, 0),
        ([], 0),
        (None, 0),
    ],
)
def test_the_width_that_compressed_tensors_tells_is_read(groups: object, bits: int) -> None:
    stored = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    assert quantization_of(stored) == Quantization("compressed-tensors", bits, "compressed-tensors")
