"""The large models of parts b and c, and what their pipelines call them with: random weights, bfloat16, made on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = dict[str, Any]


def made_on(device: Any, make: Callable[[], Any]) -> Any:
    """A model with random bfloat16 weights on a device: built without memory, then filled there. Norms begin at one, biases at zero, and
    matrices keep the size of what goes through."""
    import torch

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            module = make()
    finally:
        torch.set_default_dtype(before)
    module = module.to_empty(device=device).requires_grad_(False).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() < 2:
                weight.fill_(float(name.endswith("weight")))
            else:
                weight.normal_(0, (weight[0].numel()) ** -0.5)
    return module


def _drawn(device: Any, seed: int) -> Callable[..., Any]:
    import torch

    source = torch.Generator(device).manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=source, device=device, dtype=torch.bfloat16)


def _device(tiny: bool) -> Any:
    import torch

    return torch.device("cpu" if tiny else "cuda")


def sdxl(tiny: bool) -> tuple[Any, list[Call]]:
    """SDXL's UNet as stabilityai/stable-diffusion-xl-base-1.0 has it; guidance makes two rows of an image of 1024 by 1024."""
    from diffusers import UNet2DConditionModel

    sizes: Call = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
        "addition_time_embed_dim": 256,
    }
    if tiny:
        sizes |= {"sample_size": 8, "block_out_channels": (32, 32, 64), "transformer_layers_per_block": (1, 1, 2)}
        sizes |= {"attention_head_dim": (2, 2, 4), "cross_attention_dim": 32, "norm_num_groups": 8}
        sizes |= {"projection_class_embeddings_input_dim": 80, "addition_time_embed_dim": 8, "layers_per_block": 1}
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
    }
    device = _device(tiny)
    module = made_on(device, lambda: UNet2DConditionModel(**sizes, **kinds))
    pooled = module.config.projection_class_embeddings_input_dim - 6 * module.config.addition_time_embed_dim
    return module, [_unet_call(module, device, seed, pooled) for seed in (0, 1)]


def sd15(tiny: bool) -> tuple[Any, list[Call]]:
    """SD 1.5's UNet; guidance makes two rows of an image of 512 by 512."""
    from diffusers import UNet2DConditionModel

    sizes: Call = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
    if tiny:
        sizes = {"sample_size": 8, "block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32}
        sizes |= {"norm_num_groups": 8, "layers_per_block": 1}
    device = _device(tiny)
    module = made_on(device, lambda: UNet2DConditionModel(attention_head_dim=8, **sizes))
    return module, [_unet_call(module, device, seed, 0) for seed in (0, 1)]


def _unet_call(module: Any, device: Any, seed: int, pooled: int) -> Call:
    """A call as the pipeline makes it, of 77 tokens; `pooled`: the width of SDXL's second text embedding."""
    import torch

    draw, side = _drawn(device, seed), module.config.sample_size
    call: Call = {
        "sample": draw(2, 4, side, side),
        "timestep": torch.tensor(500 + seed, device=device),
        "encoder_hidden_states": draw(2, 77, module.config.cross_attention_dim),
        "timestep_cond": None,
        "cross_attention_kwargs": None,
        "return_dict": False,
    }
    if pooled:
        sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]] * 2, device=device, dtype=torch.bfloat16)
        call["added_cond_kwargs"] = {"text_embeds": draw(2, pooled), "time_ids": sizes}
    return call


def flux(tiny: bool) -> tuple[Any, list[Call]]:
    """FLUX.1-dev's transformer: one image of 1024 by 1024, 512 tokens, guidance as an input."""
    import torch
    from diffusers import FluxTransformer2DModel

    sizes: Call = {"guidance_embeds": True}
    if tiny:
        sizes |= {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        sizes |= {
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 6, 6),
            "in_channels": 16,
        }
    device, side, words = _device(tiny), 4 if tiny else 64, 8 if tiny else 512
    module = made_on(device, lambda: FluxTransformer2DModel(**sizes))
    places = torch.zeros(side, side, 3, device=device)
    places[..., 1] += torch.arange(side, device=device)[:, None]
    places[..., 2] += torch.arange(side, device=device)[None]

    def call(seed: int) -> Call:
        draw, config = _drawn(device, seed), module.config
        return {
            "hidden_states": draw(1, side * side, config.in_channels),
            "timestep": torch.full((1,), 0.5 + seed / 4, device=device, dtype=torch.bfloat16),
            "guidance": torch.full((1,), 3.5, device=device),
            "pooled_projections": draw(1, config.pooled_projection_dim),
            "encoder_hidden_states": draw(1, words, config.joint_attention_dim),
            "txt_ids": torch.zeros(words, 3, device=device),
            "img_ids": places.reshape(-1, 3),
            "joint_attention_kwargs": {},
            "return_dict": False,
        }

    return module, [call(0), call(1)]


def llama(tiny: bool) -> Any:
    """Llama-3-8B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Call = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    sizes |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}
    if tiny:
        sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    config, device = LlamaConfig(**sizes, tie_word_embeddings=False, attn_implementation="sdpa"), _device(tiny)
    config.dtype = "bfloat16"
    module = made_on(device, lambda: LlamaForCausalLM(config))
    rotary = module.model.rotary_emb  # its frequencies are no weights, and were never computed
    module.model.rotary_emb = type(rotary)(config=config).to(device)
    module.generation_config.eos_token_id = None
    module.generation_config.pad_token_id = 0
    return module


def steps(module: Any, tiny: bool) -> tuple[list[Call], Callable[[], None]]:
    """Calls of one decoding step as `generate` makes them, behind 512 tokens, and what sets the cache back to these."""
    import torch
    from transformers import StaticCache

    device, context = _device(tiny), 16 if tiny else 512
    cache = StaticCache(config=module.config, max_cache_len=2 * context)
    draw = torch.Generator(device).manual_seed(0)
    prompt = torch.randint(0, module.config.vocab_size, (1, context), generator=draw, device=device)
    with torch.no_grad():
        module(input_ids=prompt, past_key_values=cache, use_cache=True)
    seen = torch.arange(2 * context, device=device)[None, None, None] <= context

    def call(token: int) -> Call:
        tokens = torch.tensor([[token]], device=device)
        places = torch.tensor([[context]], device=device)
        given: Call = {"input_ids": tokens, "past_key_values": cache, "attention_mask": seen, "position_ids": places}
        return {**given, "use_cache": True, "return_dict": True}

    def back() -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)

    return [call(7), call(11)], back
