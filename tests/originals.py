"""Models of diffusers written as their first code kept them, in one file: the way back from what its converters do, spelt out by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
LAYERS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def unet(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensors:
    """Stable Diffusion's UNet as its first code names it."""
    each = config["layers_per_block"] + 1
    return {_unet(name, each, set(tensors)): tensor for name, tensor in tensors.items()}


def _unet(name: str, each: int, names: set[str]) -> str:
    layer, _, end = name.rpartition(".")
    if layer in TOP:
        return f"{TOP[layer]}.{end}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        number = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{number}.{_renamed(match[3])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    assert match, name
    way, block, what, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = block * each + (way == "down")
    if what == "downsamplers":
        return f"input_blocks.{first + each - 1}.0.op.{end}"
    if what == "upsamplers":
        attends = any(one.startswith(f"up_blocks.{block}.attentions.") for one in names)
        return f"output_blocks.{first + each - 1}.{2 if attends else 1}.conv.{end}"
    side = "input" if way == "down" else "output"
    return f"{side}_blocks.{first + number}.{1 if what == 'attentions' else 0}.{_renamed(rest)}"


def _renamed(rest: str) -> str:
    layer, _, end = rest.rpartition(".")
    return f"{RESNET.get(layer, layer)}.{end}"


def vae(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensors:
    """Stable Diffusion's autoencoder, its attention convolutions of one pixel."""
    last, found = len(config["up_block_types"]) - 1, {}
    for name, tensor in tensors.items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            new = (
                new.replace("mid_block.attentions.0.", "mid.attn_1.")
                .replace("group_norm", "norm")
                .replace("to_out.0", "proj_out")
            )
            new = re.sub(r"to_([qkv])", r"\1", new)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[new] = tensor
    return found


def clip(tensors: Mapping[str, Tensor]) -> Tensors:
    """CLIP's text encoder as transformers kept it when these files were written."""
    return {
        n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}": t for n, t in tensors.items()
    }


def open_clip(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same as OpenCLIP keeps it."""
    known, found = clip(tensors), {"logit_scale": torch.tensor(1.0)}
    tops = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for name, tensor in known.items():
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in tops:
            found[tops[name]] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif match and match[2].startswith("self_attn."):
            front, layer, end = f"transformer.resblocks.{match[1]}.attn", match[2].removeprefix("self_attn."), match[3]
            if layer == "out_proj":
                found[f"{front}.out_proj.{end}"] = tensor
            elif layer == "q_proj":
                three = [known[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
                found[f"{front}.in_proj_{end}"] = torch.cat(three)
        elif match:
            found[f"transformer.resblocks.{match[1]}.{LAYERS[match[2]]}.{match[3]}"] = tensor
    return found


def sd3(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensors:
    """Stable Diffusion 3's transformer."""
    last, found = config["num_layers"] - 1, {}
    tops = {
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    layers = {
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
        "attn.to_out.0": "x_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }
    fused = {
        "attn.to_q": (("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.qkv"),
        "attn2.to_q": (("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
        "attn.add_q_proj": (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv"),
    }
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer)
        if name == "pos_embed.pos_embed":
            found["pos_embed"] = tensor
        elif layer in tops:
            found[f"{tops[layer]}.{end}"] = _swapped(tensor) if layer == "norm_out.linear" else tensor
        elif match and match[2] in fused:
            three, into = fused[match[2]]
            parts = [tensors[f"transformer_blocks.{match[1]}.{one}.{end}"] for one in three]
            found[f"joint_blocks.{match[1]}.{into}.{end}"] = torch.cat(parts)
        elif match and match[2] in layers:
            swap = match[2] == "norm1_context.linear" and int(match[1]) == last
            found[f"joint_blocks.{match[1]}.{layers[match[2]]}.{end}"] = _swapped(tensor) if swap else tensor
    return found


def flux(tensors: Mapping[str, Tensor]) -> Tensors:
    """FLUX.1's transformer."""
    found = {}
    tops = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    }
    double = {
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
    }
    single = {
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
        "norm.linear": "modulation.lin",
        "proj_out": "linear2",
    }
    fused = {
        ("", "attn.to_q"): (("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv"),
        ("", "attn.add_q_proj"): (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv"),
        ("single_", "attn.to_q"): (("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1"),
    }
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        if layer in tops:
            found[f"{tops[layer]}.{end}"] = _swapped(tensor) if layer == "norm_out.linear" else tensor
            continue
        match = re.fullmatch(r"(single_|)transformer_blocks\.(\d+)\.(.+)", layer)
        assert match, name
        front = f"{'single' if match[1] else 'double'}_blocks.{match[2]}"
        if (match[1], match[3]) in fused:
            several, into = fused[match[1], match[3]]
            parts = [tensors[f"{match[1]}transformer_blocks.{match[2]}.{one}.{end}"] for one in several]
            found[f"{front}.{into}.{end}"] = torch.cat(parts)
        elif new := (single if match[1] else double).get(match[3]):
            found[f"{front}.{new}.{'scale' if '_norm' in new else end}"] = tensor
    return found


def _swapped(tensor: Tensor) -> Tensor:
    scale, shift = tensor.chunk(2, dim=0)
    return torch.cat([shift, scale])


def part(folder: Path, name: str) -> tuple[Tensors, dict[str, Any]]:
    """The weights and the config of a component of a pipeline's folder."""
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file), json.loads((folder / name / "config.json").read_text())


def under(front: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{front}{name}": tensor for name, tensor in tensors.items()}


DENOISER = "model.diffusion_model."


def whole(folder: Path, family: str) -> Tensors:
    """All that a checkpoint of a family holds of the pipeline in a folder."""
    sides: Tensors = under("first_stage_model.", vae(*part(folder, "vae")))
    if family == "sd3":
        clips = {one: clip(part(folder, name)[0]) for one, name in (("l", "text_encoder"), ("g", "text_encoder_2"))}
        sides |= under("text_encoders.clip_l.transformer.", clips["l"]) | under(
            "text_encoders.clip_g.transformer.", clips["g"]
        )
        if (folder / "text_encoder_3").is_dir():
            sides |= under("text_encoders.t5xxl.transformer.", part(folder, "text_encoder_3")[0])
        return under(DENOISER, sd3(*part(folder, "transformer"))) | sides
    text, _ = part(folder, "text_encoder")
    if family == "sd1":
        sides |= under("cond_stage_model.transformer.", clip(text))
        sides["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    elif family == "sd2":
        sides |= under("cond_stage_model.model.", open_clip(text))
    else:
        sides |= under("conditioner.embedders.0.transformer.", clip(text))
        sides |= under("conditioner.embedders.1.model.", open_clip(part(folder, "text_encoder_2")[0]))
    sides["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    return under(DENOISER, unet(*part(folder, "unet"))) | sides


def write_original(
    folder: Path,
    file: Path,
    family: str,
    keep: Callable[[str], bool] = lambda name: True,
    dtype: torch.dtype | None = None,
) -> Path:
    """A pipeline's folder as a checkpoint in one file, or those of its tensors that are kept."""
    found = {
        n: t if dtype is None or not t.is_floating_point() else t.to(dtype)
        for n, t in whole(folder, family).items()
        if keep(n)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in found.items()}, file)
    return file
