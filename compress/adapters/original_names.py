"""Layers as the first code of a model calls them, in diffusers' names: kohya's and other trainers keep to the former. All names are flat:
`_` for each `.`."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"(?P<where>input_blocks|output_blocks)_(?P<block>\d+)_(?P<part>\d+)_(?P<rest>.+)")
_MIDDLE = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_FLUX_BLOCK = re.compile(r"(?P<kind>double|single)_blocks_(?P<block>\d+)_(?P<layer>.+)")
# Where one layer of Flux is several of diffusers', they follow each other in its rows.
_FLUX = {
    "img_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
    "img_attn_proj": ("attn_to_out_0",),
    "img_mlp_0": ("ff_net_0_proj",),
    "img_mlp_2": ("ff_net_2",),
    "img_mod_lin": ("norm1_linear",),
    "txt_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
    "txt_attn_proj": ("attn_to_add_out",),
    "txt_mlp_0": ("ff_context_net_0_proj",),
    "txt_mlp_2": ("ff_context_net_2",),
    "txt_mod_lin": ("norm1_context_linear",),
    "linear1": ("attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm_linear",),
}
_FLUX_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer_linear": "proj_out",
    **{
        f"{theirs}_{layer}": f"time_text_embed_{ours}_linear_{number}"
        for theirs, ours in (
            ("time_in", "timestep_embedder"),
            ("vector_in", "text_embedder"),
            ("guidance_in", "guidance_embedder"),
        )
        for layer, number in (("in_layer", 1), ("out_layer", 2))
    },
}


def in_diffusers(spelled: str, layers: int) -> tuple[str, ...]:
    """The layers of diffusers that a layer of the first code is, in the order of its rows; () where the name is none of these.

    Args:
        layers: of each block of a UNet, as its config says.

    Source: `_maybe_map_sgm_blocks_to_diffusers` and `_convert_kohya_flux_lora_to_diffusers` of diffusers.
    """
    if top := _TOP.get(spelled) or _FLUX_TOP.get(spelled):
        return (top,)
    if match := _FLUX_BLOCK.fullmatch(spelled):
        front = "transformer_blocks" if match["kind"] == "double" else "single_transformer_blocks"
        return tuple(f"{front}_{match['block']}_{layer}" for layer in _FLUX.get(match["layer"], ()))
    found = _unet_layer(spelled, layers)
    return (found,) if found else ()


def _unet_layer(spelled: str, layers: int) -> str:
    if spelled.startswith("middle_block_"):
        part, _, rest = spelled.removeprefix("middle_block_").partition("_")
        return f"mid_block_{_MIDDLE.get(part, part)}_{_RESNET.get(rest, rest)}"
    if not (match := _BLOCK.fullmatch(spelled)):
        return ""
    down, number, part, rest = match["where"] == "input_blocks", int(match["block"]), match["part"], match["rest"]
    block, layer = divmod(number - 1 if down else number, layers + 1)
    side = "down_blocks" if down else "up_blocks"
    if down and rest == "op":
        return f"{side}_{block}_downsamplers_0_conv"
    if part == "2" or (rest == "conv" and part != "0"):
        return f"{side}_{block}_upsamplers_0_{rest}"
    return f"{side}_{block}_{'attentions' if part == '1' else 'resnets'}_{layer}_{_RESNET.get(rest, rest)}"
