"""quantize.gptq leaves a checkpoint that stock transformers opens and that differs from the original as 4-bit rounding does, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.data.items import Data, Item
from compress.engines.torch.stored import stored
from compress.files.hashing import digest_files
from compress.files.safetensors_headers import read_header
from compress.model import bit_widths
from compress.model.describing import describe
from compress.opening import open_language
from compress.quantization.linears import linears
from tests.families import tiny_text
from tests.stages import apply
from tests.tiny import tiny_byte_tokenizer, tiny_llama

pytest.importorskip("gptqmodel", reason="needs pare[gptq]")

GPTQ = "quantize.gptq"
WORDS = ("array", "axis", "value", "sorted", "shape", "index", "matrix", "order")
TEXTS = [" ".join(WORDS[(3 * i + j) % 8] for j in range(8)) for i in range(24)]
DATA = Data("sentences", "texts", "digest", len(TEXTS), lambda i: Item(str(i), TEXTS[i]))
TOKENS = torch.tensor([tiny_byte_tokenizer()(f"<bos>{TEXTS[1]}", add_special_tokens=False)["input_ids"]])
# No module of pare can be imported here.
ALONE = """
import sys
sys.modules["compress"] = sys.modules["evaluation"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokens = torch.tensor([[int(word) for word in sys.argv[3].split()]])
with torch.no_grad():
    logits = model(tokens).logits.float()
written = model.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False)
torch.save({"logits": logits, "written": written}, sys.argv[2])
"""


def quantized(folder: Path, out: Path, **params: Any) -> tuple[Artifact, list[Any]]:
    return apply(GPTQ, describe(folder), out, data=DATA, **{"group_size": 32, "samples": 24, **params})


def opened_alone(folder: Path, out: Path) -> dict[str, torch.Tensor]:
    words = " ".join(map(str, TOKENS[0].tolist()))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, str(folder), str(out), words]
    done = subprocess.run(command, env={**env, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, torch.Tensor] = torch.load(out)
    return found


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far apart, as a share of the first's size."""
    return float((one - other).norm() / one.norm())


def logits(artifact: Artifact) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = open_language(artifact).model(TOKENS).logits.float()
    return found


def rounded(folder: Path, bits: int, group: int) -> torch.Tensor:
    """The logits with every block's weights rounded to the nearest of their group's levels, and nothing corrected."""
    model = open_language(describe(folder)).model
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            rows = module.weight.data.reshape(-1, group)
            scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            module.weight.data = ((rows / scale).round() * scale).reshape(module.weight.shape)
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits.float()
    return found


def test_a_checkpoint_opens_without_pare_and_writes_what_pare_measures(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    before = {file: (tmp_path / "model" / file).read_bytes() for file in os.listdir(folder)}
    made, notes = quantized(folder, tmp_path / "out")
    alone = opened_alone(made.path, tmp_path / "alone.pt")
    assert torch.equal(alone["logits"], logits(made))
    assert alone["written"].shape == (1, TOKENS.shape[1] + 6)
    assert alone["written"].tolist()[0][TOKENS.shape[1] :] == open_language(made).generate(TOKENS.tolist(), 6)[0]
    original = logits(describe(folder))
    assert 0 < distance(original, alone["logits"]) < distance(original, rounded(folder, 4, 32))
    assert bit_widths.reported(bit_widths.shares(made, LANGUAGE_MODEL)) == "52.7% int4, 47.3% float32"
    (facts,) = (note.facts for note in notes if "kernels" in note.facts)
    assert facts["kernels"] == "14 × TorchAtenLinear"
    assert facts["arithmetic"] == "on a 4-bit kernel"
    assert {file: (folder / file).read_bytes() for file in os.listdir(folder)} == before
    assert sorted(os.listdir(made.path)) == sorted({*before, "pare.json", "quantize_config.json"})


def test_layers_that_are_ignored_stay_as_they_are(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    made, _ = quantized(folder, tmp_path / "out", ignore=["*.o_proj", "model.layers.1.mlp"])
    before, after = (read_header(at / "model.safetensors").tensors for at in (folder, made.path))
    plain = {name for name in before if name in after and "layers" in name and len(before[name].shape) > 1}
    kept = [f"model.layers.{block}.self_attn.o_proj" for block in (0, 1)]
    kept += [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert plain == {f"{name}.weight" for name in kept}
    opened_alone(made.path, tmp_path / "alone.pt")
    with (
        safe_open(folder / "model.safetensors", "pt") as one,
        safe_open(made.path / "model.safetensors", "pt") as other,
    ):
        for name in plain:
            assert torch.equal(one.get_tensor(name), other.get_tensor(name))


@pytest.mark.slow
def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    first, second = (quantized(folder, tmp_path / name)[0].path for name in ("one", "two"))
    assert digest_files(first) == digest_files(second)


WORKING = ("qwen2", "qwen3", "mistral", "gpt2", "opt", "gemma2", "gemma3", "phi3")


@pytest.mark.slow
@pytest.mark.parametrize("family", WORKING)
def test_a_family_is_quantized_opened_and_near_its_original(family: str, tmp_path: Path) -> None:
    folder = tiny_text(tmp_path / "model", family)
    made, _ = quantized(folder, tmp_path / "out", bits=8)
    alone = opened_alone(made.path, tmp_path / "alone.pt")
    assert distance(logits(describe(folder)), alone["logits"]) < 0.05
    layers = [one for one in linears(describe(folder)) if not one.head and not one.name.endswith("c_proj")]
    assert stored(made.path)["int8"] == sum(one.weights for one in layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {"bits": 2},
        {"bits": 3, "act_order": True, "ignore": ["*.k_proj", "*.v_proj"]},
        {"group_size": -1, "symmetric": False},
    ],
)
def test_every_width_and_order_opens(params: dict[str, Any], tmp_path: Path) -> None:
    made, notes = quantized(tiny_llama(tmp_path / "model"), tmp_path / "out", **params)
    assert opened_alone(made.path, tmp_path / "alone.pt")["logits"].isfinite().all()
    (facts,) = (note.facts for note in notes if "kernels" in note.facts)
    assert facts["arithmetic"] == (
        "on a 4-bit kernel" if "TorchFused" in facts["kernels"] else "decompressed at each call"
    )
