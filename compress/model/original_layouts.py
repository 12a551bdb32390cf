"""The tensors of original checkpoints, as A1111 and ComfyUI keep them, under the names and in the shapes that diffusers gives them: what its
converters will make of a file, forecast from headers and configs.

Source: `convert_ldm_unet_checkpoint` and its neighbours in diffusers' `loaders/single_file_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
Renamed = Iterator[tuple[str, Shape]]
FLUX_WIDTH = 3072  # of the only FLUX that diffusers' converter knows

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_UNET_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_ADDED = {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
_UNET_BLOCK = re.compile(r"(?P<side>input|output)_blocks\.(?P<block>\d+)\.(?P<part>\d)\.(?P<rest>.+)")
_UNET_MIDDLE = re.compile(r"middle_block\.(?P<part>\d)\.(?P<rest>.+)")
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE = (
    (re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.(.+)"), r"encoder.down_blocks.\1.resnets.\2.\3"),
    (re.compile(r"encoder\.down\.(\d+)\.downsample\.conv\.(.+)"), r"encoder.down_blocks.\1.downsamplers.0.conv.\2"),
    (re.compile(r"(encoder|decoder)\.mid\.attn_1\.(.+)"), r"\1.mid_block.attentions.0.\2"),
    (re.compile(r"(encoder|decoder)\.norm_out\.(.+)"), r"\1.conv_norm_out.\2"),
    (re.compile(r"((?:encoder|decoder)\.conv_(?:in|out)\..+|(?:post_)?quant_conv\..+)"), r"\1"),
)
_VAE_MIDDLE = re.compile(r"(?P<side>encoder|decoder)\.mid\.block_(?P<block>\d)\.(?P<rest>.+)")
_VAE_UP = re.compile(r"decoder\.up\.(?P<level>\d+)\.(?P<what>block\.\d+|upsample\.conv)\.(?P<rest>.+)")
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPEN_CLIP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")
LAST_OF_SD2 = 23  # the layer of its text encoder whose output it does not use
# What diffusers leaves out of a file with reason, by the names within a part: what is computed anew or has another copy, what only training
# or the other half of a CLIP uses, and marks that trainers set for ComfyUI. Projections are some encoders' alone (`open_clip_of_sd2`,
# `clip_of_sd3`), and whether they are left out depends on these.
LEFT_BEHIND = re.compile(
    r"(.*\.)?position_ids|logit_scale|attn_mask|(vision_model|visual|visual_projection|loss|model_ema)(\..+)?|v_pred|ztsnr"
)
T5_COPY = "encoder.embed_tokens.weight"  # of its embedding
_QKV = ("q", "k", "v")
_FLUX_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    **{
        f"{theirs}.{layer}": f"time_text_embed.{ours}.linear_{number}"
        for theirs, ours in (
            ("time_in", "timestep_embedder"),
            ("vector_in", "text_embedder"),
            ("guidance_in", "guidance_embedder"),
        )
        for layer, number in (("in_layer", 1), ("out_layer", 2))
    },
}
_FLUX_BLOCK = re.compile(r"(?P<kind>double|single)_blocks\.(?P<block>\d+)\.(?P<layer>.+)\.(?P<end>weight|bias|scale)")
_FLUX = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_SD3_TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_SD3_BLOCK = re.compile(
    r"joint_blocks\.(?P<block>\d+)\.(?P<stream>x|context)_block\.(?P<layer>.+)\.(?P<end>weight|bias)"
)
_SD3 = {
    ("x", "attn.qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("x", "attn2.qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("context", "attn.qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("x", "attn.ln_q"): ("attn.norm_q",),
    ("x", "attn.ln_k"): ("attn.norm_k",),
    ("x", "attn2.ln_q"): ("attn2.norm_q",),
    ("x", "attn2.ln_k"): ("attn2.norm_k",),
    ("context", "attn.ln_q"): ("attn.norm_added_q",),
    ("context", "attn.ln_k"): ("attn.norm_added_k",),
    ("x", "attn.proj"): ("attn.to_out.0",),
    ("x", "attn2.proj"): ("attn2.to_out.0",),
    ("context", "attn.proj"): ("attn.to_add_out",),
    ("x", "mlp.fc1"): ("ff.net.0.proj",),
    ("x", "mlp.fc2"): ("ff.net.2",),
    ("context", "mlp.fc1"): ("ff_context.net.0.proj",),
    ("context", "mlp.fc2"): ("ff_context.net.2",),
    ("x", "adaLN_modulation.1"): ("norm1.linear",),
    ("context", "adaLN_modulation.1"): ("norm1_context.linear",),
}


def unet(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """Stable Diffusion's UNet, without a prefix before its names."""
    layer, _, end = name.rpartition(".")
    top = _UNET_TOP | (_ADDED if config.get("addition_embed_type") == "text_time" else {})
    if layer in top:
        yield f"{top[layer]}.{end}", shape
    elif match := _UNET_MIDDLE.fullmatch(name):
        yield f"mid_block.{_MIDDLE[match['part']]}.{_resnet(match['rest'])}", shape
    elif match := _UNET_BLOCK.fullmatch(name):
        down, number, part, rest = match["side"] == "input", int(match["block"]), match["part"], match["rest"]
        block, layers = divmod(number - 1 if down else number, int(config["layers_per_block"]) + 1)
        side = f"{'down' if down else 'up'}_blocks.{block}"
        if down and rest.startswith("op."):
            yield f"{side}.downsamplers.0.conv.{end}", shape
        elif part != "0" and rest.startswith("conv."):
            yield f"{side}.upsamplers.0.conv.{end}", shape
        else:
            yield f"{side}.{'attentions' if part == '1' else 'resnets'}.{layers}.{_resnet(rest)}", shape


def vae(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """Stable Diffusion's autoencoder, without a prefix before its names."""
    if match := _VAE_MIDDLE.fullmatch(name):
        found = f"{match['side']}.mid_block.resnets.{int(match['block']) - 1}.{match['rest']}"
    elif match := _VAE_UP.fullmatch(name):
        what = match["what"].replace("block.", "resnets.").replace("upsample.conv", "upsamplers.0.conv")
        found = f"decoder.up_blocks.{len(config['up_block_types']) - 1 - int(match['level'])}.{what}.{match['rest']}"
    else:
        found = next((way.sub(new, name) for way, new in _VAE if way.fullmatch(name)), "")
    front, attention, rest = found.partition(".mid_block.attentions.0.")
    if attention:
        layer, _, end = rest.rpartition(".")
        found = f"{front}{attention}{_VAE_ATTENTION[layer]}.{end}"
        shape = shape[:2]  # what was a convolution of one pixel is a linear layer
    if found:
        yield found.replace("nin_shortcut", "conv_shortcut"), shape


def clip(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """A text encoder of transformers', which has its own names."""
    if not LEFT_BEHIND.fullmatch(name):
        yield name, shape


def clip_of_sd3(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """As `clip`, of the smaller one of Stable Diffusion 3, whose projection diffusers makes the identity."""
    if name.endswith("position_embedding.weight"):
        yield "text_projection.weight", (shape[-1], shape[-1])
    if not name.startswith("text_projection."):
        yield from clip(name, shape, config)


def open_clip(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """A text encoder of OpenCLIP's, which keeps queries, keys and values in one tensor."""
    if name in _OPEN_CLIP:
        yield _OPEN_CLIP[name], shape
    elif name == "text_projection":
        yield "text_projection.weight", shape[::-1]
    elif match := _OPEN_CLIP_BLOCK.fullmatch(name):
        front, rest = f"text_model.encoder.layers.{match['layer']}", match["rest"]
        if rest.startswith("attn.in_proj_"):
            for one in _QKV:
                yield f"{front}.self_attn.{one}_proj.{rest.removeprefix('attn.in_proj_')}", _share(shape, 3)
        else:
            layer, _, end = rest.rpartition(".")
            yield f"{front}.{_OPEN_CLIP_LAYER.get(layer, layer)}.{end}", shape


def open_clip_of_sd2(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """As `open_clip`, without what Stable Diffusion 2 does not use of it."""
    if name != "text_projection" and not name.startswith(f"transformer.resblocks.{LAST_OF_SD2}."):
        yield from open_clip(name, shape, config)


def t5(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """T5's encoder, which has its own names; its embedding is kept once."""
    if name != T5_COPY and not LEFT_BEHIND.fullmatch(name):
        yield name, shape


def flux(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """FLUX.1's transformer, without a prefix before its names."""
    layer, _, end = name.rpartition(".")
    if layer in _FLUX_TOP:
        yield f"{_FLUX_TOP[layer]}.{end}", shape
    elif match := _FLUX_BLOCK.fullmatch(name):
        front = f"{'single_' if match['kind'] == 'single' else ''}transformer_blocks.{match['block']}"
        found = _FLUX.get(match["layer"], ())
        for one in found:
            rows = (
                shape
                if len(found) == 1
                else _share(shape, 3)
                if len(found) == 3
                else (shape[0] - 3 * FLUX_WIDTH if one == "proj_mlp" else FLUX_WIDTH, *shape[1:])
            )
            yield f"{front}.{one}.{'weight' if match['end'] == 'scale' else match['end']}", rows


def sd3(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """Stable Diffusion 3's transformer, without a prefix before its names."""
    layer, _, end = name.rpartition(".")
    if name == "pos_embed":
        yield "pos_embed.pos_embed", shape
    elif layer in _SD3_TOP:
        yield f"{_SD3_TOP[layer]}.{end}", shape
    elif match := _SD3_BLOCK.fullmatch(name):
        found = _SD3.get((match["stream"], match["layer"]), ())
        for one in found:
            rows = _share(shape, 3) if len(found) == 3 else shape
            yield f"transformer_blocks.{match['block']}.{one}.{match['end']}", rows


def as_it_is(name: str, shape: Shape, config: Mapping[str, Any]) -> Renamed:
    """A part that has diffusers' names already."""
    if not LEFT_BEHIND.fullmatch(name):
        yield name, shape


@dataclass(frozen=True)
class Layout:
    """How a part of a pipeline lies in a file.

    component: what diffusers' pipelines call the part. kinds: the classes that it may be; empty: any.
    begins: what the names of its tensors begin with, and does not belong to them.
    shows: a name that only files with this part have, without that.
    convert: a tensor's name and shape to those that diffusers gives it; nothing of what it leaves out.
    """

    component: str
    kinds: tuple[str, ...]
    begins: str
    shows: str
    convert: Callable[[str, Shape, Mapping[str, Any]], Renamed]

    def of(self, name: str) -> str:
        """A tensor's name without what it begins with; "" where it belongs to another part."""
        return name.removeprefix(self.begins) if name.startswith(self.begins) else ""


# What is left out of single parts.
LEFT_OUT_OF: Mapping[Callable[[str, Shape, Mapping[str, Any]], Renamed], re.Pattern[str]] = {
    open_clip_of_sd2: re.compile(rf"text_projection|transformer\.resblocks\.{LAST_OF_SD2}\..+"),
    clip_of_sd3: re.compile(r"text_projection\..+"),
    t5: re.compile(re.escape(T5_COPY)),
}
_CLIPS = ("CLIPTextModel", "CLIPTextModelWithProjection")
_DENOISERS = (
    ("unet", ("UNet2DConditionModel",), "input_blocks.0.0.weight", unet),
    ("transformer", ("FluxTransformer2DModel",), "double_blocks.0.img_attn.norm.key_norm.scale", flux),
    ("transformer", ("SD3Transformer2DModel",), "joint_blocks.0.context_block.adaLN_modulation.1.bias", sd3),
)
_POSITIONS = "text_model.embeddings.position_embedding.weight"
# Of parts with one prefix the first whose name is there is meant.
LAYOUTS = (
    *(Layout(part, kinds, front, shows, convert) for front in ("model.diffusion_model.", "") for part, kinds, shows, convert in _DENOISERS),
    Layout("unet", ("UNet2DConditionModel",), "", "time_embedding.linear_1.weight", as_it_is),
    Layout("transformer", (), "", "transformer_blocks.0.attn.to_q.weight", as_it_is),
    Layout("vae", ("AutoencoderKL",), "first_stage_model.", "decoder.conv_in.weight", vae),
    Layout("vae", ("AutoencoderKL",), "vae.", "decoder.conv_in.weight", vae),
    Layout("text_encoder", _CLIPS, "cond_stage_model.transformer.", _POSITIONS, clip),
    Layout("text_encoder", _CLIPS, "cond_stage_model.model.", "token_embedding.weight", open_clip_of_sd2),
    Layout("text_encoder", _CLIPS, "conditioner.embedders.0.transformer.", _POSITIONS, clip),
    Layout("text_encoder_2", _CLIPS, "conditioner.embedders.1.model.", "positional_embedding", open_clip),
    Layout("text_encoder", _CLIPS, "text_encoders.clip_l.transformer.", _POSITIONS, clip_of_sd3),
    Layout("text_encoder_2", _CLIPS, "text_encoders.clip_g.transformer.", _POSITIONS, clip),
    Layout("text_encoder_3", ("T5EncoderModel",), "text_encoders.t5xxl.transformer.", "shared.weight", t5),
)  # fmt: skip
# What the names of a text encoder's tensors begin with, whether or not it is one of these.
ENCODER = re.compile(r"(cond_stage_model|conditioner\.embedders\.\d+|text_encoders\.\w+)\.")
DENOISERS = ("unet", "transformer")


def layouts_of(names: Mapping[str, object]) -> tuple[Layout, ...]:
    """The parts that a file holds, each once."""
    found: dict[str, Layout] = {}
    denoisers = 0
    for layout in LAYOUTS:
        if f"{layout.begins}{layout.shows}" not in names or layout.component in found:
            continue
        denoisers += layout.component in DENOISERS
        if layout.component not in DENOISERS or denoisers == 1:
            found[layout.component] = layout
    return tuple(found.values())


def converted(layout: Layout, tensors: Mapping[str, Shape], config: Mapping[str, Any], kind: str) -> dict[str, Shape]:
    """The tensors of a part, by the names that diffusers gives them.

    Args:
        tensors: those of the file. config, kind: of the component that they become.

    Raises:
        KeyError, TypeError, ValueError: the config says nothing of how many layers there are.
    """
    found = {
        new: into
        for name, shape in tensors.items()
        if (own := layout.of(name))
        for new, into in layout.convert(own, shape, config)
    }
    if kind != "CLIPTextModel":
        return found
    # transformers keeps its layers without this word, and the projection with another class.
    return {
        name.removeprefix("text_model."): shape for name, shape in found.items() if name != "text_projection.weight"
    }


def owned(layout: Layout, names: Iterable[str]) -> list[str]:
    """The tensors of a part. What has the prefix of another is not of one that has none."""
    others = () if layout.begins else tuple({one.begins for one in LAYOUTS if one.begins})
    return [
        name for name in names if layout.of(name) and not (others and (name.startswith(others) or ENCODER.match(name)))
    ]


def passed_over(layout: Layout, tensors: Mapping[str, Shape], config: Mapping[str, Any]) -> list[str]:
    """Tensors of a part that diffusers' converter leaves out, though nothing says that they are of no use.

    Raises:
        KeyError, TypeError, ValueError: as `converted` does.
    """
    reasons = LEFT_OUT_OF.get(layout.convert)
    return [
        name
        for name, shape in tensors.items()
        if (own := layout.of(name))
        and not LEFT_BEHIND.fullmatch(own)
        and not (reasons and reasons.fullmatch(own))
        and not any(layout.convert(own, shape, config))
    ]


def _resnet(rest: str) -> str:
    layer, _, end = rest.rpartition(".")
    return f"{_RESNET.get(layer, layer)}.{end}"


def _share(shape: Shape, of: int) -> Shape:
    return (shape[0] // of, *shape[1:])
