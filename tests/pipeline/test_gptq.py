"""quantize.gptq leaves a checkpoint that stock transformers opens and that differs from the original as 4-bit rounding does, no more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.files.hashing import digest_files
from compress.files.safetensors_headers import read_header
from compress.model import bit_widths
from compress.model.describing import describe
from compress.opening import open_language
from tests.opened_alone import Job, open_alone
from tests.quantizing import DATA, TEXTS, distance
from tests.stages import apply
from tests.tiny import tiny_byte_tokenizer, tiny_llama

pytest.importorskip("gptqmodel", reason="needs pare[gptq]")

GPTQ = "quantize.gptq"
TOKENS = torch.tensor([tiny_byte_tokenizer()(f"<bos>{TEXTS[1]}", add_special_tokens=False)["input_ids"]])


def quantized(folder: Path, out: Path, **params: Any) -> tuple[Artifact, list[Any]]:
    return apply(GPTQ, describe(folder), out, data=DATA, **{"group_size": 32, "samples": 24, **params})


def opened_alone(made: Artifact, out: Path) -> dict[str, torch.Tensor]:
    (found,) = open_alone([Job(made, LANGUAGE_MODEL, {"input_ids": TOKENS}, written=6)], out)
    return found


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
    alone = opened_alone(made, tmp_path / "alone")
    assert torch.equal(alone["found"], logits(made))
    assert alone["written"].tolist() == open_language(made).generate(TOKENS.tolist(), 6)[0]
    original = logits(describe(folder))
    assert 0 < distance(original, alone["found"]) < distance(original, rounded(folder, 4, 32))
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
    opened_alone(made, tmp_path / "alone")
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
    assert opened_alone(made, tmp_path / "alone")["found"].isfinite().all()
    (facts,) = (note.facts for note in notes if "kernels" in note.facts)
    fused = any(kernel in facts["kernels"] for kernel in ("TorchFused", "TorchAten"))
    assert facts["arithmetic"] == ("on a 4-bit kernel" if fused else "decompressed at each call")
