"""Every family either is quantized by quantize.autoround and opens in stock transformers, close to what it was, or is refused at plan in one
sentence. Slow: each is a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.errors import UserError
from compress.machine.deps import installed
from compress.model.describing import describe
from compress.opening import open_task
from tests import families
from tests.stages import apply

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed("auto_round"), reason="pip install 'pare[autoround]'"),
]
STAGE = "quantize.autoround"
# Sides that are multiples of 32, which is what auto-round takes.
_WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
WIDER: dict[str, dict[str, Any]] = {
    "qwen2": _WIDE,
    "qwen3": {**_WIDE, "head_dim": 32},
    "mistral": _WIDE,
    "gemma2": {**_WIDE, "head_dim": 32},
    "gemma3": {**_WIDE, "head_dim": 32},
    "phi3": {**_WIDE, "rope_scaling": None},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128},
    "bloom": {"hidden_size": 64},
    "qwen3-moe": {**_WIDE, "head_dim": 32, "moe_intermediate_size": 64},
}
REFUSED = {"gpt2": "Conv1D"}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "awq": {"samples": 8, "length": 16, "batch": 4},
    "autoround": {"iters": 4, "samples": 8, "length": 16, "batch": 4},
}
NEAR = 0.3  # of the logits' size, at 6 bits, for random weights


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", WIDER)
def test_a_family_is_quantized_and_opens(tmp_path: Path, family: str, method: str) -> None:
    source = describe(families.tiny_text(tmp_path / "model", family, **WIDER[family]))
    how = {"method": method, "bits": 6, "group_size": 32, **METHODS[method]}
    made, _ = apply(STAGE, source, tmp_path / "out", **how)
    before, after = (logits(side) for side in (source, made))
    assert 0 < (after - before).norm() / before.norm() < NEAR


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_is_refused_in_one_sentence(tmp_path: Path, family: str) -> None:
    source = describe(families.tiny_text(tmp_path / "model", family))
    stage = find_stage(STAGE)
    with pytest.raises(UserError, match=REFUSED[family]) as caught:
        stage.forecast(source, stage.params(group_size=32))
    assert len(caught.value.problems) == 1


def logits(artifact: Artifact) -> torch.Tensor:
    task: Any = open_task(artifact)
    with torch.inference_mode():
        found: torch.Tensor = task.model(input_ids=torch.arange(5, 29).view(1, -1), use_cache=False).logits
    return found.float()
