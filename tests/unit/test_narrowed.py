"""Modules in fewer digits are what their library opens in those, and what a timestep is made of keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import AutoModelForCausalLM

from compress.engines.tracing import Narrowed, narrowed
from tests.families import tiny_text

TOKENS = torch.randint(0, 200, (1, 3000), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_language_model_is_what_transformers_opens_in_that_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """At the three thousandth position, where frequencies of half the digits would have turned keys elsewhere."""
    folder = tiny_text(tmp_path / "model", "qwen2", max_position_embeddings=4096)
    whole, theirs = (AutoModelForCausalLM.from_pretrained(folder, dtype=one) for one in (torch.float32, dtype))
    ours = narrowed(whole, dtype)
    with torch.no_grad():
        assert torch.equal(ours(TOKENS).logits, theirs(TOKENS).logits)
        assert not torch.equal(ours(TOKENS).logits, whole.to(dtype)(TOKENS).logits), "the cast of all of it is another"
    assert {one.dtype for one in ours.parameters()} == {dtype}
    assert ours.model.rotary_emb.inv_freq.dtype is torch.float32


def test_the_model_itself_stays_as_it_was(tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny_text(tmp_path / "model", "qwen2"), dtype=torch.float32)
    narrowed(whole, torch.bfloat16)
    assert {one.dtype for one in whole.parameters()} == {torch.float32}


def test_steps_are_told_apart_in_bfloat16() -> None:
    torch.manual_seed(0)
    small = {"block_out_channels": (32, 32), "norm_num_groups": 8, "cross_attention_dim": 8, "sample_size": 8}
    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    whole = UNet2DConditionModel(**small, **kinds).eval()
    half = narrowed(whole, torch.bfloat16)
    traced = Narrowed(half, "forward", {}).eval()
    sample, texts = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
    with torch.no_grad():
        found = [
            traced(sample=sample, timestep=torch.tensor([t]), encoder_hidden_states=texts)["sample"]
            for t in (999.0, 1000.0)
        ]
        theirs = half(sample.bfloat16(), torch.tensor([999.0]), texts.bfloat16()).sample
    assert found[0].dtype is torch.float32
    assert torch.equal(found[0], theirs.float())
    assert not torch.equal(*found)
    assert next(p.dtype for p in traced.parameters()) is torch.float32, "by which the exporter casts what it is given"
