"""peft itself, where it is installed: what it saves is fused into what its `merge_and_unload` makes, and diffusers' `fuse_lora`
agrees on what it saves and on kohya's files. The laws of `tests.pipeline.test_fusing.py` hold without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters import RANK, branches, of_kinds, shapes, write_diffusers, write_kohya
from tests.families import tiny_text
from tests.pipeline.test_fusing import fused, generator, sgm
from tests.tiny import tiny_diffusion

peft = pytest.importorskip("peft")

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("qwen2", {"target_modules": ["q_proj", "v_proj"]}),
    "all": ("qwen2", {"target_modules": "all-linear", "lora_alpha": 3}),
    "rank stabilised": ("qwen2", {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns": (
        "qwen2",
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 8},
            "alpha_pattern": {"^model.layers.0.*q_proj": 32},
        },
    ),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "embeddings": ("qwen2", {"target_modules": ["embed_tokens", "q_proj"]}),
    "whole modules": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "magnitudes": ("qwen2", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "magnitudes of transposed layers": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "eva's shape of a start": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_peft_saves_is_fused_into_what_peft_merges(tmp_path: Path, case: str) -> None:
    from transformers import AutoModelForCausalLM

    family, config = CONFIGS[case]
    base = tiny_text(tmp_path / "base", "qwen2" if family == "llama" else family, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": RANK, "lora_alpha": 6, "task_type": "CAUSAL_LM", **config})
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    tuned.save_pretrained(tmp_path / "lora")
    result = load_file(fused(base, tmp_path / "lora", cache=tmp_path / "cache") / "model.safetensors")
    merged = tuned.merge_and_unload().state_dict()
    before = load_file(base / "model.safetensors")
    assert result.keys() == before.keys()
    assert any(not torch.equal(result[name], before[name]) for name in result)
    for name, weight in result.items():
        assert torch.allclose(weight, merged[name], atol=1e-6), name


def test_a_convolution_with_magnitudes_is_what_peft_merges(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    base = generator(tmp_path, "sd")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    tuned = peft.get_peft_model(
        unet, peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=["conv1", "to_q"], use_dora=True)
    )
    noise = torch.Generator().manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = torch.rand(parameter.shape, generator=noise) * 0.1
    tuned.save_pretrained(tmp_path / "lora")
    result = fused(base, {"path": tmp_path / "lora", "scale": 1}, cache=tmp_path / "cache") / "unet"
    made, merged = load_file(result / "diffusion_pytorch_model.safetensors"), tuned.merge_and_unload().state_dict()
    before = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    assert {before[n].dim() for n in made if not torch.equal(made[n], before[n])} == {2, 4}
    for name, weight in made.items():
        assert torch.allclose(weight, merged[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("family", "form"), [("sd", "metadata"), ("sd3", "metadata"), ("sd", "kohya"), ("xl", "kohya"), ("xl", "original")]
)
def test_what_diffusers_fuses_is_what_is_fused(tmp_path: Path, family: str, form: str) -> None:
    from diffusers import DiffusionPipeline

    base = tiny_diffusion(tmp_path, xl=True) if family == "xl" else generator(tmp_path, family)
    part = "transformer" if family == "sd3" else "unet"
    weights = shapes(base / part / "diffusion_pytorch_model.safetensors")
    pairs = branches(of_kinds(weights, [".to_q", ".to_out.0", ".ff.net.2", "conv1", ".proj_in"]))
    if form == "metadata":
        write_diffusers(tmp_path / "lora", {part: pairs}, alphas=False)
    else:
        pairs = {name: pair for name, pair in pairs.items() if sgm(name)} if form == "original" else pairs
        named = {sgm(name) if form == "original" else name: pair for name, pair in pairs.items()}
        write_kohya(tmp_path / "lora/style.safetensors", {"lora_unet": named}, torch.float32)
    (file,) = (tmp_path / "lora").iterdir()
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    asked = {n.replace(".base_layer", ""): w for n, w in getattr(pipeline, part).state_dict().items()}
    result = fused(base, {"path": file, "scale": 0.5}, cache=tmp_path / "cache")
    made, before = (load_file(f / part / "diffusion_pytorch_model.safetensors") for f in (result, base))
    assert sum(not torch.equal(made[name], before[name]) for name in made) == len(pairs) > 5
    for name, weight in made.items():
        assert torch.allclose(weight, asked[name], atol=1e-6), name
