"""What quantize.autoround packs, read by the compressed-tensors library alone and by a plain loop: the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress.artifact import LANGUAGE_MODEL
from compress.machine.deps import installed
from compress.model.describing import describe
from tests.packed_codes import dequantized
from tests.stages import apply
from tests.tiny import tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed("auto_round"), reason="pip install 'pare[autoround]'"),
]
LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_library_reads_the_weights_that_were_rounded(tmp_path: Path, bits: int) -> None:
    source = describe(tiny_llama(tmp_path / "llama"))
    how: dict[str, Any] = {"method": "rtn", "group_size": 32, "ignore": ("*.k_proj", "*.v_proj"), "bits": bits}
    made, _ = apply("quantize.autoround", source, tmp_path / "out", **how)
    tensors = load_file(made.path / "model.safetensors")
    ours = dequantized(tensors, LAYER, bits=bits, group_size=32)
    theirs = decompressed(tensors, made.config(LANGUAGE_MODEL)["quantization_config"])
    assert np.abs(ours - theirs).max() < 1e-6
    before = load_file(source.path / "model.safetensors")[f"{LAYER}.weight"].double().numpy()
    assert np.abs(ours - before).max() <= 0.51 * tensors[f"{LAYER}.weight_scale"].abs().max().item() * 2


def decompressed(tensors: dict[str, torch.Tensor], packed: dict[str, Any]) -> Any:
    """A layer's weight as the library unpacks it, by what the config says of it."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    args = QuantizationArgs(**packed["config_groups"]["group_0"]["weights"])
    scale, shape = tensors[f"{LAYER}.weight_scale"].float(), torch.Size(tensors[f"{LAYER}.weight_shape"].tolist())
    found = unpack_from_int32(tensors[f"{LAYER}.weight_packed"], args.num_bits, shape)
    return dequantize(found, scale=scale, args=args).double().numpy()
