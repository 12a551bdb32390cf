"""Families of checkpoints are told from headers as diffusers tells them from weights, and what its converters make of them is foreseen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as theirs

from compress.files.safetensors_headers import Stored
from compress.model.original_families import OTHERWISE, families, family_of, repository_of
from compress.model.original_layouts import FLUX_WIDTH, LAYOUTS, converted, layouts_of
from tests import originals

Shapes = Mapping[str, tuple[int, ...]]
D = "model.diffusion_model."
NAMES: Mapping[str, Any] = theirs.CHECKPOINT_KEY_NAMES


def first(family: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    named = NAMES[family]
    return {named if isinstance(named, str) else named[0]: shape}


def every(family: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(NAMES[family], shape)


INPAINTING, SD2 = first("inpainting", (320, 9, 3, 3)), first("v2", (320, 1024))
FLUX = first("flux", (128,))
GUIDED = FLUX | {"guidance_in.in_layer.bias": (8,)}
LTX = first("ltx-video", (8, 8))
DC = first("autoencoder-dc", (8,))
WAN = first("wan", (1, 2, 8))
PATCH = f"{D}patch_embedding.weight"
# What of a header shows each family of diffusers' table, as tiny as its rule allows.
SHOWN: Mapping[str, Shapes] = {
    "v1": {f"{D}input_blocks.0.0.weight": (8, 4, 3, 3)},
    "v2": SD2,
    "xl_base": first("xl_base", (8,)),
    "xl_refiner": first("xl_refiner", (8,)),
    "xl_inpaint": INPAINTING | first("xl_base", (8,)),
    "inpainting": INPAINTING,
    "inpainting_v2": INPAINTING | SD2,
    "playground-v2-5": first("playground-v2-5", (4,)),
    "upscale": first("upscale", (8,)),
    "controlnet": first("controlnet", (8,)),
    "controlnet_xl_large": first("controlnet", (8,)) | first("controlnet_xl", (8, 8)) | first("controlnet_xl_large", (8,)),
    "controlnet_xl_mid": first("controlnet", (8,)) | first("controlnet_xl", (8, 8)) | first("controlnet_xl_mid", (8,)),
    "controlnet_xl_small": first("controlnet", (8,)) | first("controlnet_xl", (8, 8)),
    "stable_cascade_stage_b": first("stable_cascade_stage_b", (8, 640)),
    "stable_cascade_stage_b_lite": first("stable_cascade_stage_b", (8, 576)),
    "stable_cascade_stage_c": first("stable_cascade_stage_c", (2048, 8)),
    "stable_cascade_stage_c_lite": first("stable_cascade_stage_c", (1536, 8)),
    "sd3": first("sd3", (9216,)) | {"pos_embed": (1, 36864, 8)},
    "sd35_medium": first("sd3", (9216,)) | {"pos_embed": (1, 147456, 8)},
    "sd35_large": first("sd35_large", (8, 8)),
    "auraflow": every("auraflow", (8, 8)),
    "flux-schnell": FLUX,
    "flux-dev": GUIDED | {"img_in.weight": (8, 64)},
    "flux-depth": GUIDED | {"img_in.weight": (8, 128)},
    "flux-fill": GUIDED | {"img_in.weight": (8, 384)},
    "flux-2-dev": first("flux2", (8, 8)),
    "chroma": first("chroma", (8,)),
    "ltx-video": LTX,
    "ltx-video-0.9.7": LTX | {"transformer_blocks.47.scale_shift_table": (2, 8)},
    "ltx-video-0.9.5": LTX | {"vae.encoder.conv_in.conv.bias": (8,), "vae.encoder.conv_out.conv.weight": (8, 2048)},
    "ltx-video-0.9.1": LTX | {"vae.decoder.last_time_embedder.timestep_embedder.linear_1.weight": (8, 8)},
    "autoencoder-dc-f32c32-sana": DC | first("autoencoder-dc-sana", (8,)),
    "autoencoder-dc-f32c32": DC | {"encoder.project_in.conv.conv.bias": (64,), "decoder.project_in.main.conv.weight": (8, 32)},
    "autoencoder-dc-f64c128": DC | {"encoder.project_in.conv.conv.bias": (64,), "decoder.project_in.main.conv.weight": (8, 128)},
    "autoencoder-dc-f128c512": DC | {"encoder.project_in.conv.conv.bias": (128,), "decoder.project_in.main.conv.weight": (8, 8)},
    "mochi-1-preview": first("mochi-1-preview", (8, 8)),
    "hunyuan-video": first("hunyuan-video", (8,)),
    "instruct-pix2pix": {f"{D}input_blocks.0.0.weight": (8, 8, 3, 3)},
    "lumina2": first("lumina2", (8,)),
    "z-image-turbo": first("z-image-turbo", (8, 8)),
    "sana": first("sana", (8, 8)),
    "wan-t2v-1.3B": WAN | {PATCH: (1536, 16)},
    "wan-t2v-14B": WAN | {PATCH: (5120, 16)},
    "wan-i2v-14B": WAN | {PATCH: (5120, 36)},
    "hidream": first("hidream", (8,)),
    "qwen-image-2.1": first("qwen-image-2.1", (8,)),
    "krea2": first("krea2", (8, 8)),
}  # fmt: skip


def header(shapes: Shapes) -> dict[str, Stored]:
    return {name: Stored("F16", shape, 0) for name, shape in shapes.items()}


def tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("family", SHOWN)
def test_a_family_is_told_by_a_header_as_diffusers_tells_it_by_weights(family: str) -> None:
    assert theirs.infer_diffusers_model_type(tensors(SHOWN[family])) == family, "the header of this test shows another"
    assert family_of(header(SHOWN[family])) == family
    assert repository_of(family) == theirs.DIFFUSERS_DEFAULT_PIPELINE_PATHS[family]["pretrained_model_name_or_path"]


def test_all_of_diffusers_table_are_known() -> None:
    assert set(families()) == set(theirs.DIFFUSERS_DEFAULT_PIPELINE_PATHS)
    assert set(SHOWN) <= set(families())


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({"decoder.conv_in.weight": (8, 4, 3, 3)}, ""),  # of which the rule says v1, as of whatever it does not know
        ({"model.embed_tokens.weight": (8, 8)}, ""),
        ({}, ""),
        ({"model.diffusion_model.pos_embed": (1, 8, 8)}, ""),
        ({"input_blocks.0.0.weight": (8, 4, 3, 3)}, "v1"),  # a UNet by itself, as ComfyUI keeps it
        ({"input_blocks.0.0.weight": (8, 4, 3, 3), "label_emb.0.0.weight": (8, 8)}, "xl_base"),
        ({"input_blocks.0.0.weight": (8, 9, 3, 3)}, "inpainting"),
        ({"conditioner.embedders.1.model.ln_final.bias": (8,)}, "xl_base"),  # tiny: the rule asks for a tenth layer
        ({"joint_blocks.0.x_block.attn.qkv.weight": (8, 8)}, "sd3"),
        (every("cosmos-1.0", (8, 9)), ""),  # whose rule gives up
    ],
)
def test_what_the_rule_does_not_see(shapes: Shapes, family: str) -> None:
    assert family_of(header(shapes)) == family


def test_what_it_does_not_know_diffusers_calls_one() -> None:
    assert theirs.infer_diffusers_model_type({}) == OTHERWISE


def test_fluxs_layout_is_what_the_converter_makes_of_it_at_its_real_width() -> None:
    """The converter knows one width alone, which no tiny model has; without content it costs nothing."""
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    with init_empty_weights():
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
    wanted = {name: one.to("meta") for name, one in model.state_dict().items()}
    original = originals.under(D, originals.flux(wanted))
    assert theirs.infer_diffusers_model_type(original) == "flux-dev"
    (layout,) = layouts_of(original)
    shapes = {name: tuple(one.shape) for name, one in original.items()}
    foreseen = converted(layout, shapes, {}, "FluxTransformer2DModel")
    made = theirs.convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    assert foreseen == {name: tuple(one.shape) for name, one in made.items()}
    assert foreseen == {name: tuple(one.shape) for name, one in wanted.items()}
    assert shapes[f"{D}img_in.weight"][0] == FLUX_WIDTH


def test_layouts_of_one_component_are_told_apart() -> None:
    assert len({(layout.begins, layout.shows) for layout in LAYOUTS}) == len(LAYOUTS)
    assert layouts_of({}) == ()
