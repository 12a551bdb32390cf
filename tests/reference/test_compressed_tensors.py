"""What quantize.autoround and distill.quantized pack, read by the compressed-tensors library alone and by a plain loop: the weights that pare measures.

Nothing of transformers is opened: the library turns each layer's packed tensors back by what the config says of them, in a process without pare.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.machine.deps import installed
from compress.opening import open_language
from tests.opened_alone import Job, open_alone
from tests.packed_codes import dequantized
from tests.quantizing import DATA, TAUGHT, TOKENS, tiny
from tests.stages import apply

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed("auto_round"), reason="pip install 'pare[autoround]'"),
]
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_library_reads_the_weights_that_were_rounded(source: Artifact, tmp_path: Path, bits: int) -> None:
    how: dict[str, Any] = {"method": "rtn", "group_size": 32, "bits": bits}
    made, _ = apply("quantize.autoround", source, tmp_path / "out", **how)
    before = load_file(source.path / "model.safetensors")[f"{LAYER}.weight"].double().numpy()
    found = held_to_the_library(made, bits, tmp_path)
    scales = load_file(made.path / "model.safetensors")[f"{LAYER}.weight_scale"]
    assert np.abs(found - before).max() <= 1.02 * scales.abs().max().item()  # half a step, but for the ends of a range


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_library_reads_the_weights_that_were_taught(source: Artifact, tmp_path: Path, bits: int) -> None:
    made, _ = apply(
        "distill.quantized", source, tmp_path / "out", data=DATA, inputs={"teacher": source}, bits=bits, **TAUGHT
    )
    found = held_to_the_library(made, bits, tmp_path)
    before = load_file(source.path / "model.safetensors")[f"{LAYER}.weight"].double().numpy()
    assert found.shape == before.shape
    assert (found != before).any()  # taught and rounded, not the original


def held_to_the_library(made: Artifact, bits: int, folder: Path) -> Any:
    """Compare every layer as the library unpacks it with what pare runs, and one with a plain loop over its codes, which is given."""
    (theirs,) = open_alone([Job(made, LANGUAGE_MODEL, opener="compressed_tensors")], folder / "alone")
    model = open_language(made).model
    with torch.no_grad():
        model(TOKENS)  # transformers decompresses at the first call
    weights = {name.removesuffix(".weight"): tensor for name, tensor in model.named_parameters()}
    assert len(theirs) == 14
    for layer, weight in theirs.items():
        assert torch.equal(weight, weights[layer]), layer
    ours = dequantized(load_file(made.path / "model.safetensors"), LAYER, bits=bits, group_size=32)
    assert np.abs(ours - theirs[LAYER].double().numpy()).max() < 1e-6
    return ours
