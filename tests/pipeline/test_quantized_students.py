"""Students taught under their own rounding: what is packed is what they computed with, in plain transformers, byte for byte again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import compress
from compress.algorithms.grids import Grid, rounded
from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization
from compress.catalogue import find_stage
from compress.context import Context
from compress.data.items import Data, Item
from compress.engines.torch.stored import stored
from compress.errors import RecipeError, UserError
from compress.events import Event
from compress.files.hashing import digest_files
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_language
from tests.families import tiny_text
from tests.stages import apply, forecast
from tests.tiny import tiny_llama

PACKER = pytest.importorskip("compressed_tensors")

TEXTS = tuple(f"The {i}th value of the sorted array." for i in range(40))
DATA = Data("train.txt", "texts", "digest", len(TEXTS), lambda i: Item(str(i), TEXTS[i]))
LITTLE = {"steps": 6, "tokens": 16, "batch": 2, "group_size": 16, "precision": "float32", "warmup": 1}
TOKENS = torch.tensor([[5, 60, 70, 80, 90, 100, 110, 120]])
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


def taught(artifact: Artifact, out: Path, **params: object) -> Artifact:
    made, _ = apply("distill.quantized", artifact, out, data=DATA, inputs={"teacher": artifact}, **{**LITTLE, **params})
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_weights_are_those_it_computed_with(
    bits: int, dtype: torch.dtype, llama: Artifact, tmp_path: Path
) -> None:
    from compress.training.packing import pack, round_layers, tell_packing

    model = open_language(llama, Opening("float32")).model
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    grid = Grid(bits, 16)
    round_layers(model, names, grid, dtype, learned=True)
    with torch.no_grad():
        model.get_submodule(LAYER).parametrizations.weight[0].log_scale.normal_(std=0.1)
        weights = {name: model.get_submodule(name).weight.clone() for name in names}
        wanted = model(TOKENS).logits
    record = pack(model, grid)
    model.to(dtype).save_pretrained(tmp_path)
    tell_packing(record, tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    assert files[f"{LAYER}.weight_packed"].dtype == torch.int32
    assert files[f"{LAYER}.weight_packed"].shape == (32, 64 * bits // 32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        found = loaded(TOKENS).logits
        for name, weight in weights.items():
            assert torch.equal(loaded.get_submodule(name).weight.float(), weight), name
    if dtype == torch.float32:
        assert torch.equal(found, wanted)


@pytest.fixture(scope="module")
def student(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return taught(llama, tmp_path_factory.mktemp("student") / "out", bits=3)


def test_a_student_is_packed_and_says_so(student: Artifact, llama: Artifact) -> None:
    assert student.components[LANGUAGE_MODEL].quantization == Quantization(
        "compressed-tensors", 3, "compressed-tensors"
    )
    held = stored(student.path)
    assert held["int3"] == sum(p.numel() for n, p in weights_of(llama).items() if "proj" in n)
    message = json.loads((student.path / "config.json").read_text())["quantization_config"]
    assert message["ignore"] == ["lm_head"]
    assert message["config_groups"]["group_0"]["weights"]["group_size"] == 16
    assert forecast("distill.quantized", llama, **LITTLE, bits=3).quantization == {
        LANGUAGE_MODEL: student.components[LANGUAGE_MODEL].quantization
    }


def weights_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    return {n: p for n, p in open_language(artifact, Opening("float32")).model.named_parameters() if p.ndim > 1}


def test_it_learns_under_its_rounding(llama: Artifact, tmp_path: Path) -> None:
    params = {**LITTLE, "bits": 2, "steps": 40, "learning_rate": 3e-3, "batch": 8}
    _, notes = apply("distill.quantized", llama, tmp_path / "out", data=DATA, inputs={"teacher": llama}, **params)
    curve = notes[-1].facts["loss"]
    assert curve[-1][1] < 0.7 * curve[0][1]
    assert "layers at 2 bits" in notes[-1].message


def test_the_same_bytes_again(llama: Artifact, student: Artifact, tmp_path: Path) -> None:
    again = taught(llama, tmp_path / "out", bits=3)
    assert digest_files(again.path) == digest_files(student.path)
    other = taught(llama, tmp_path / "other", bits=3, scales="fixed")
    assert digest_files(other.path) != digest_files(student.path)


def test_stopped_and_gone_on_with_it_ends_in_the_same_bytes(llama: Artifact, student: Artifact, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.kind == "progress" and event.done == 3 and "training" in event.what:
            raise KeyboardInterrupt

    recorded: list[Event] = []
    stage, params = find_stage("distill.quantized"), {**LITTLE, "bits": 3}
    context = Context(
        tmp_path / "out", tmp_path / "scratch", inputs={"teacher": llama}, data={"train": DATA}, node="step"
    )
    with pytest.raises(KeyboardInterrupt):
        stage.run(llama, stage.params(**params), replace(context, emit=stop))
    (tmp_path / "out").mkdir()
    stage.run(llama, stage.params(**params), replace(context, emit=recorded.append))
    assert any("goes on at step 3" in event.message for event in recorded)
    weights = (digest_files(folder)["model.safetensors"] for folder in (tmp_path / "out", student.path))
    assert len(set(weights)) == 1


def test_ignored_layers_stay_as_they_were_trained(llama: Artifact, tmp_path: Path) -> None:
    made = taught(llama, tmp_path / "out", ignore=("*.down_proj", "model.layers.1.self_attn"))
    names = set(load_file(made.path / "model.safetensors"))
    assert f"{LAYER}.weight" in names
    assert "model.layers.1.self_attn.q_proj.weight" in names
    assert "model.layers.0.self_attn.q_proj.weight_packed" in names


def test_what_cannot_be_packed_is_reported_before_anything_runs(llama: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="group_size 24 does not divide the inputs of 14 of the 14 layers"):
        forecast("distill.quantized", llama, group_size=24)
    with pytest.raises(UserError, match="names none of the"):
        forecast("distill.quantized", llama, group_size=16, ignore=("*.dwn_proj",))
    stage = find_stage("distill.quantized")
    assert stage.refuse(llama, stage.params(group_size=16, ignore=("re:(",))) == ""
    with pytest.raises(UserError, match="is no regular expression"):
        forecast("distill.quantized", llama, group_size=16, ignore=("re:(",))
    gpt2 = describe(tiny_text(tmp_path / "gpt2", "gpt2"))
    assert "Conv1D" in stage.refuse(gpt2, stage.params())
    assert "every linear layer" in stage.refuse(llama, stage.params(ignore=("model",)))


def test_nothing_changes_packed_weights_afterwards(llama: Artifact, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "recipe.yaml").write_text(
        f"schema: 1\nname: x\nmodel: {llama.path}\ndata: {{train: train.txt}}\nstages:\n"
        "  - distill.quantized: {group_size: 16}\n  - build.gguf: {}\n"
    )
    with pytest.raises(RecipeError, match="compressed-tensors already"):
        compress.check(tmp_path / "recipe.yaml", cache=tmp_path / "cache")


def test_the_library_rounds_as_we_do() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    scale = torch.rand(16, 4, generator=torch.Generator().manual_seed(2)) + 0.1
    args = QuantizationArgs(num_bits=3, type="int", symmetric=True, strategy="group", group_size=8)
    theirs = fake_quantize(weight, scale, torch.zeros(16, 4, dtype=torch.int8), args)
    assert torch.equal(rounded(weight, scale, Grid(3, 8)), theirs)
