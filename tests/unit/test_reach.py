"""What bitsandbytes and torchao reach, would pass over in silence, or have no GPU for, is reported when it is planned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import compress
from compress.artifact import Quantization
from compress.catalogue import find_stage
from compress.engines.torch.runtime import load_component, stored_dtype
from compress.engines.torch.stored import stored
from compress.errors import Problem, RecipeError, UserError
from compress.files.safetensors_headers import read_header
from compress.machine.devices import Opening
from compress.machine.gpus import Gpu
from compress.model.batching import company
from compress.model.describing import describe, quantization_of
from compress.quantization.packed_places import device_for, packed_place_problems
from compress.quantization.reach import reach, same_layer, spellings
from compress.quantizers.packing import order_header
from compress.recipe.values import EvalSpec
from evaluation.comparison.sides import Request, beside, viewpoints
from tests.fakes import language_model
from tests.families import tiny_image, tiny_text
from tests.tiny import tiny_diffusion, tiny_llama

AO, BNB = "quantize.torchao", "quantize.bitsandbytes"
A100, H100 = Gpu("NVIDIA A100", "SM80"), Gpu("NVIDIA H100", "SM90")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_llama(folder / "llama"),
        "half": tiny_text(folder / "half", "qwen2", dtype=torch.bfloat16),
        "gpt2": tiny_text(folder / "gpt2", "gpt2"),
        "mixture": tiny_text(folder / "mixture", "qwen3-moe"),
        "recurrent": tiny_text(folder / "recurrent", "mamba"),
        "generator": tiny_diffusion(folder / "generator"),
        "half generator": tiny_diffusion(folder / "halves", dtype=torch.bfloat16),
        "flux": tiny_image(folder / "flux", "flux"),
    }


def reported(
    model: Path, folder: Path, *steps: Mapping[str, Any], device: str = "cpu", gpu: Gpu | None = None
) -> tuple[Problem, ...]:
    """What a plan says, every library there, on a machine with this GPU."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({"schema": 1, "name": "x", "model": str(model), "stages": list(steps)}))
    with (
        mock.patch("compress.planning.plan.settled", return_value=device),
        mock.patch("compress.machine.gpus.gpus_here", return_value=(gpu,) if gpu else ()),
        mock.patch("compress.machine.deps.version", return_value="1.2.3"),
    ):
        try:
            compress.check(file, cache=folder / "cache")
        except RecipeError as error:
            return error.problems
    return ()


REFUSED: list[tuple[str, Mapping[str, Any], str, Gpu | None, tuple[str, ...]]] = [
    ("llama", {AO: {"ignore": ["*.o_prj"]}}, "cpu", None, ("`*.o_prj` names none of the 15 linear layers",)),
    ("llama", {BNB: {"ignore": ["re:("]}}, "cpu", None, ("is no regular expression",)),
    ("llama", {BNB: {"ignore": ["*"]}}, "cpu", None, ("LlamaForCausalLM has no linear layer left to pack",)),
    ("llama", {BNB: {"threshold": 0}}, "cuda:0", A100, ("mode nf4 has no use for threshold", "or give mode: int8")),
    (
        "llama",
        {BNB: {"mode": "int8", "double_quant": True}},
        "cpu",
        None,
        ("mode int8 has no use for double_quant", "mode: nf4 or fp4"),
    ),
    (
        "llama",
        {BNB: {}},
        "cpu",
        None,
        ("12 layers of `model` are others: ", "*.q_proj (32 → 32)", "mode: int8, or ignore:"),
    ),
    ("llama", {AO: {"group_size": 32}}, "cpu", None, ("has no use for group_size", "or give mode: int4_weights")),
    ("llama", {AO: {"mode": "int4_weights"}}, "cpu", None, ("from SM80 on, and the device is cpu",)),
    ("llama", {AO: {"mode": "float8"}}, "cuda:0", A100, ("from SM89 on, and cuda:0 is NVIDIA A100, SM80",)),
    ("llama", {AO: {"mode": "float8"}}, "cuda:0", H100, ("float8 computes in bfloat16, and the model is stored in",)),
    ("llama", {AO: {"mode": "int4_weights"}}, "cuda:0", A100, ("in bfloat16, and the model is stored in float32",)),
    ("half", {AO: {"mode": "int4_weights"}}, "cuda:0", A100, ("group_size 128 does not divide the inputs of 14",)),
    ("gpt2", {AO: {}}, "cpu", None, ("GPT2LMHeadModel is made of Conv1D, 8 of its layers", "quantize.bitsandbytes")),
    ("recurrent", {BNB: {"mode": "int8"}}, "cpu", None, ("2 layers without calling them", 'ignore: ["*.dt_proj"]')),
    ("recurrent", {AO: {}}, "cpu", None, ("2 layers without calling them", 'ignore: ["*.dt_proj"]')),
    ("mixture", {AO: {}}, "cpu", None, ("which torchao passes over", 'ignore: ["*experts*"]')),
    (
        "mixture",
        {BNB: {"mode": "int8"}},
        "cpu",
        None,
        ("keeps its experts in tensors of three axes", "bitsandbytes passes over"),
    ),
    (
        "generator",
        {BNB: {}},
        "cpu",
        None,
        ("as diffusers packs `unet`, it takes an NVIDIA GPU", "quantize.torchao packs it"),
    ),
    ("generator", {AO: {"components": ["unt"]}}, "cpu", None, ("no component `unt`",)),
    ("flux", {AO: {"ignore": ["proj_out"]}}, "cpu", None, ("single_transformer_blocks.0.proj_out", "ignore them too")),
]


@pytest.mark.parametrize(("model", "step", "device", "gpu", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_one_problem_with_its_way_out(
    model: str,
    step: Mapping[str, Any],
    device: str,
    gpu: Gpu | None,
    words: tuple[str, ...],
    models: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    (problem,) = reported(models[model], tmp_path, step, device=device, gpu=gpu)
    assert all(word in f"{problem.message} {problem.fix}" for word in words), problem
    assert problem.place.startswith(str(tmp_path / "recipe.yaml"))
    assert problem.fix


TAKEN: list[tuple[str, Mapping[str, Any], str, Gpu | None]] = [
    ("half", {AO: {"mode": "float8"}}, "cuda:0", H100),
    ("half", {AO: {"mode": "int4_weights", "group_size": 32}}, "cuda:0", A100),
    ("generator", {BNB: {}}, "cuda:0", A100),
    ("generator", {BNB: {"components": ["text_encoder"], "mode": "int8"}}, "cpu", None),
    ("llama", {BNB: {"mode": "nf4"}}, "cuda:0", A100),
    ("generator", {AO: {"components": "all"}}, "cpu", None),
    ("mixture", {AO: {"ignore": ["*experts*"]}}, "cpu", None),
    ("gpt2", {BNB: {"mode": "int8"}}, "cpu", None),
    ("recurrent", {BNB: {"mode": "int8", "ignore": ["*.dt_proj"]}}, "cpu", None),
    ("recurrent", {AO: {"ignore": ["*.dt_proj"]}}, "cpu", None),
    ("flux", {AO: {"ignore": ["*proj_out"]}}, "cpu", None),
]


@pytest.mark.parametrize(("model", "step", "device", "gpu"), TAKEN, ids=lambda value: str(value)[:40])
def test_what_can_work_is_planned(
    model: str,
    step: Mapping[str, Any],
    device: str,
    gpu: Gpu | None,
    models: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    assert reported(models[model], tmp_path, step, device=device, gpu=gpu) == ()


@pytest.mark.parametrize(
    "later", [AO, BNB, "prune.width", "prune.depth", "build.openvino", "build.gguf", "export.onnx"]
)
def test_packed_weights_are_no_later_stages_to_change(later: str, models: Mapping[str, Path], tmp_path: Path) -> None:
    found = reported(models["llama"], tmp_path, {AO: {}}, {later: {}})
    assert any("the weights of `model` are torchao already" in problem.message for problem in found)


def test_an_engine_is_not_packed_and_comes_before_what_torchao_packs_in_half_precision(
    models: Mapping[str, Path], tmp_path: Path
) -> None:
    build = {"build.openvino": {"components": ["unet"]}}
    for stage in (AO, BNB):
        (problem,) = reported(models["generator"], tmp_path, build, {stage: {"components": ["unet"]}})
        assert f"{stage} takes torch, but `unet` is openvino" in problem.message
    pack = {AO: {"components": ["text_encoder"]}}
    assert reported(models["generator"], tmp_path, pack, build) == ()
    (problem,) = reported(models["half generator"], tmp_path, pack, build)
    assert "packed by torchao for bfloat16" in problem.message
    assert "put build.openvino before quantize.torchao" in problem.message
    assert reported(models["half generator"], tmp_path, build, pack) == ()


def test_a_plan_says_how_the_weights_are_packed_and_what_share_of_them(models: Mapping[str, Path]) -> None:
    artifact = describe(models["generator"])
    found = find_stage(AO).forecast(artifact, find_stage(AO).params(components=("unet", "vae")))
    assert found.quantization == dict.fromkeys(("unet", "vae"), Quantization("torchao", 8, "torchao"))
    share = reach(artifact, "vae").share
    assert 0 < share < 0.1  # nearly all of it convolutions
    assert f"vae: int8_weights reaches 8 of 8 linear layers, {share:.0%} of its weights" in found.reported
    stage = find_stage(BNB)
    llama = describe(models["llama"])
    for mode, bits in (("nf4", 4), ("int8", 8)):
        found = stage.forecast(llama, stage.params(mode=mode))
        assert found.quantization == {"model": Quantization("bitsandbytes", bits, "bitsandbytes")}
        assert "14 of 15 linear layers" in found.reported


def test_no_share_is_reported_of_weights_that_are_still_to_be_cut(models: Mapping[str, Path]) -> None:
    artifact = describe(models["llama"])
    cut = replace(artifact, planned={"model": {**artifact.config("model"), "intermediate_size": 32}})
    stage = find_stage(AO)
    assert stage.forecast(cut, stage.params()).reported == "model: int8_weights reaches 14 of 15 linear layers"


def test_a_layer_is_the_same_under_a_checkpoints_name_and_its_classes() -> None:
    assert set(spellings(["text_model.layers.0.fc1"])) == {"text_model.layers.0.fc1", "layers.0.fc1", "lm_head"}
    assert same_layer("text_model.layers.0.fc1", "layers.0.fc1")
    assert not same_layer("layers.10.fc1", "layers.0.fc1")


def config_of(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **more}}


def way(kind: str, **data: Any) -> dict[str, Any]:
    return {"quant_type": {"default": {"_type": kind, "_data": data}}}


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("Int8WeightOnlyConfig", 8),
        ("Int8DynamicActivationInt8WeightConfig", 8),
        ("Int8DynamicActivationInt4WeightConfig", 4),
        ("Int4WeightOnlyConfig", 4),
        ("Float8DynamicActivationFloat8WeightConfig", 8),
        ("IntxWeightOnlyConfig", 0),
    ],
)
def test_torchaos_configs_say_how_wide_weights_are(kind: str, bits: int) -> None:
    assert quantization_of(config_of("torchao", **way(kind))) == Quantization("torchao", bits, "torchao")
    assert quantization_of(config_of("torchao", quant_type="int4_weight_only")) == Quantization("torchao", 4, "torchao")


def named(model: Path, folder: Path, part: str, message: Mapping[str, Any]) -> Path:
    """The same model, the config of one part saying how its weights are packed."""
    for file in model.rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    config = json.loads((folder / part / "config.json").read_text())
    (folder / part / "config.json").write_text(json.dumps({**config, **message}))
    return folder


FLOAT8 = way("Float8DynamicActivationFloat8WeightConfig")
PLACES: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "generator",
        "unet",
        config_of("bitsandbytes", load_in_4bit=True),
        "as diffusers opens them: it takes an NVIDIA GPU",
    ),
    ("generator", "text_encoder", config_of("bitsandbytes", load_in_4bit=True), ""),
    ("llama", "", config_of("torchao", **way("Int4WeightOnlyConfig")), "from SM80 on, and the device is cpu"),
    ("llama", "", config_of("torchao", **FLOAT8), "from SM89 on, and the device is cpu"),
    ("llama", "", config_of("torchao", **way("Int8WeightOnlyConfig")), ""),
    ("llama", "", config_of("gptq", bits=4), ""),
]


@pytest.mark.parametrize(("model", "part", "message", "why"), PLACES)
def test_a_packed_model_that_needs_a_gpu_is_refused_without_one(
    model: str, part: str, message: dict[str, Any], why: str, models: Mapping[str, Path], tmp_path: Path
) -> None:
    artifact = describe(named(models[model], tmp_path / "m", part, message))
    found = list(packed_place_problems(artifact, Opening(), "here"))
    assert [why in problem.message for problem in found] == [True] * bool(why)
    with mock.patch("compress.machine.gpus.gpus_here", return_value=(H100,)):
        assert list(packed_place_problems(artifact, Opening(device="cuda:0"), "here")) == []
        assert device_for(artifact) == ("cuda:0" if why else "cpu")
    assert not why or any(why in problem.message for problem in reported(artifact.path, tmp_path, {AO: {}}))


def test_activations_with_one_scale_a_call_are_read_alone(models: Mapping[str, Path], tmp_path: Path) -> None:
    for number, (kind, kept) in enumerate([("PerRow", "any"), ("PerTensor", "alone")]):
        message = config_of(
            "torchao", **way("Float8DynamicActivationFloat8WeightConfig", granularity=[{"_type": kind}] * 2)
        )
        assert company(describe(named(models["llama"], tmp_path / str(number), "", message))) == kept


def test_what_torchao_packed_is_opened_in_no_other_number_type(models: Mapping[str, Path], tmp_path: Path) -> None:
    folder = named(models["generator"], tmp_path / "m", "unet", config_of("torchao", **way("Int8WeightOnlyConfig")))
    with pytest.raises(UserError, match="packed by torchao for float32, and cannot be opened in bfloat16"):
        load_component(folder / "unet", "diffusers", "UNet2DConditionModel", Opening(dtype="bfloat16"))


def test_packed_weights_are_counted_without_what_stands_beside_them(tmp_path: Path) -> None:
    tensors = {
        "embed.weight": torch.zeros(10, 4, dtype=torch.bfloat16),
        "a._weight_qdata": torch.zeros(8, 4, dtype=torch.int8),
        "a._weight_scale": torch.zeros(8, 1, dtype=torch.bfloat16),
        "a._weight_zero_point": torch.zeros(8, 1, dtype=torch.int8),
        "b._weight_qdata": torch.zeros(1, 1, 2, 4, dtype=torch.int32),
        "b._weight_scale_and_zero": torch.zeros(2, 4, 2, dtype=torch.bfloat16),
        "c.weight": torch.zeros(16, 1, dtype=torch.uint8),
        "c.weight.absmax": torch.zeros(2),
        "c.weight.quant_map": torch.zeros(16),
        "c.weight.quant_state.bitsandbytes__nf4": torch.zeros(40, dtype=torch.uint8),
        "d.weight": torch.zeros(3, 4, dtype=torch.int8),
        "d.SCB": torch.zeros(3),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored(tmp_path) == {"bfloat16": 40, "int8": 32 + 12, "int4": 64, "nf4": 32}
    assert stored_dtype(tmp_path) == torch.bfloat16  # what is reported beside packed weights is always float32


@settings(max_examples=25)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=12), max_size=6), st.randoms())
def test_a_header_in_order_says_the_same(message: dict[str, str], chance: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.safetensors" for n in (1, 2)]
        for file in files:
            pairs = list(message.items())
            chance.shuffle(pairs)
            save_file({"b": torch.arange(3.0), "a.weight": torch.ones(2, 2)}, file, metadata=dict(pairs))
            order_header(file)
        assert files[0].read_bytes() == files[1].read_bytes()
        assert read_header(files[0]).metadata == message
        assert torch.equal(load_file(files[0])["b"], torch.arange(3.0))


def test_weights_packed_for_one_number_type_are_compared_in_that_one(tmp_path: Path) -> None:
    """A float32 baseline stands beside a model that torchao packed in bfloat16, which opens in nothing else."""
    plain = describe(language_model(tmp_path / "model"))
    packed = plain.packing({"model": Quantization("torchao", 8, "torchao")})
    other = plain.packing({"model": Quantization("gptq", 4, "gptqmodel")})
    request = Request("x", plain, plain, None, EvalSpec(), {}, "", (), tmp_path, ())
    base = replace(viewpoints(request)[0], opening=Opening("float32"))
    assert [beside(base, request, one).opening.dtype for one in (plain, packed, other)] == ["float32", None, "float32"]
