"""Layers that were quantized in parts are one again, as if they had never been split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.quantizers.fused import parts_of, put_together

WHOLE = "model.layers.0.mlp.gate_up_proj"
GATE, UP = parts_of(WHOLE)


def packed(outputs: int, seed: int) -> dict[str, torch.Tensor]:
    """A layer of 64 inputs in 4 bits, in groups of 32."""
    generator = torch.Generator().manual_seed(seed)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31 - 1, shape, generator=generator).int()

    scales = torch.rand(2, outputs, generator=generator).half()
    found = {"qweight": codes(8, outputs), "qzeros": codes(2, outputs // 8), "scales": scales}
    return {**found, "g_idx": torch.arange(64).int() // 32}


def unpacked(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    """Its weights [inputs, outputs], by the format's definition: (code - zero - 1) * scale."""
    nibbles = torch.arange(0, 32, 4)
    codes = (layer["qweight"][:, None, :] >> nibbles[None, :, None] & 15).reshape(64, -1)
    zeros = (layer["qzeros"][:, :, None] >> nibbles & 15).reshape(2, -1)
    group = layer["g_idx"].long()
    return (codes - zeros[group] - 1) * layer["scales"].float()[group]


def named(module: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{module}.{name}": value for name, value in tensors.items()}


@pytest.mark.parametrize("shards", [False, True])
def test_parts_are_put_together_whatever_files_they_lie_in(tmp_path: Path, shards: bool) -> None:
    gate, up, other = packed(16, 0), packed(16, 1), {"norm.weight": torch.ones(3)}
    files = [{**named(GATE, gate), **other}, named(UP, up)]
    if shards:
        where = {n: f"model-{i}.safetensors" for i, tensors in enumerate(files) for n in tensors}
        for i, tensors in enumerate(files):
            save_file(tensors, tmp_path / f"model-{i}.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    else:
        save_file({**files[0], **files[1]}, tmp_path / "model.safetensors")
    put_together(tmp_path, [WHOLE, "model.layers.0.mlp.down_proj"])
    found = {n: t for file in sorted(tmp_path.glob("*.safetensors")) for n, t in load_file(file).items()}
    assert found.keys() == {*named(WHOLE, gate), "norm.weight"}
    whole = {name: found[f"{WHOLE}.{name}"] for name in gate}
    assert torch.equal(unpacked(whole), torch.cat([unpacked(gate), unpacked(up)], 1))
    if shards:
        message = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        assert {n: n in load_file(tmp_path / file) for n, file in message.items()} == dict.fromkeys(found, True)


def test_plain_parts_are_put_together_too(tmp_path: Path) -> None:
    gate, up = torch.rand(4, 6), torch.rand(4, 6)
    save_file({f"{GATE}.weight": gate, f"{UP}.weight": up}, tmp_path / "model.safetensors")
    put_together(tmp_path, [WHOLE])
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == {f"{WHOLE}.weight"}
    assert torch.equal(found[f"{WHOLE}.weight"], torch.cat([gate, up]))


def test_parts_with_their_columns_in_another_order_are_no_layer(tmp_path: Path) -> None:
    gate, up = packed(16, 0), packed(16, 1)
    up["g_idx"] = up["g_idx"].flip(0)
    save_file({**named(GATE, gate), **named(UP, up)}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="have their columns in another order each"):
        put_together(tmp_path, [WHOLE])


def test_nothing_is_rewritten_where_nothing_was_split(tmp_path: Path) -> None:
    put_together(tmp_path, ["model.layers.0.mlp.down_proj"])
    assert parts_of("lm_head") == ("lm_head",)
