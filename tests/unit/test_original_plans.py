"""What keeps a checkpoint in one file from being opened with the configs that are named is told when planning, from headers and JSON, each
with its place and a way out."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.cli import main
from compress.errors import ManyProblems, ModelError, Problem, RecipeError, UserError
from compress.files.safetensors_headers import read_header
from compress.planning.plan import Plan
from compress.recipe.reading import hub_references, read_values
from compress.recipe.schema import recipe_schema
from compress.sources.models import find_source, look_at
from tests import originals
from tests.adapters import write_config
from tests.fakes import language_model, write_headers
from tests.families import tiny_image
from tests.originals import write_original
from tests.tiny import tiny_diffusion

Shapes = dict[str, tuple[int, ...]]
D = "model.diffusion_model."
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1 and SDXL as folders, and as files."""
    found = tmp_path_factory.mktemp("made")
    for family in ("sd1", "sdxl"):
        shutil.move(tiny_diffusion(found / f"{family}-made", xl=family == "sdxl", second=16), found / family)
        write_original(found / family, found / f"{family}.safetensors", family)
    return found


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, to be spoilt."""
    for one in made.iterdir():
        if one.suffix:
            (tmp_path / one.name).symlink_to(one)
        elif not one.name.endswith("-made"):
            shutil.copytree(one, tmp_path / one.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shapes(here: Path, family: str) -> Shapes:
    return {name: one.shape for name, one in read_header(here / f"{family}.safetensors").tensors.items()}


def problems(reference: str) -> tuple[Problem, ...]:
    with pytest.raises(UserError) as caught:
        find_source(reference, Path(), None)
    assert all(one.fix and (one.place or "is not pinned" in one.message) for one in caught.value.problems)
    return caught.value.problems


def refused(reference: str) -> str:
    return "\n".join(map(str, problems(reference)))


def changed(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_bare_checkpoint_is_one_error_that_names_its_family_and_whose_configs_it_takes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "r.yaml").write_text("schema: 1\nname: r\nmodel: ./sdxl.safetensors\n")
    with pytest.raises(SystemExit) as left:
        main(["check", "r.yaml", "--cache", "cache"])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("r.yaml:3:8: ")
    assert message.count("fix:") == 1
    assert "is a checkpoint in one file of the family xl_base, which holds no configs and no tokenizers" in message
    assert (
        "./sdxl.safetensors::./FOLDER (for this family diffusers takes hf://stabilityai/stable-diffusion-xl-base-1.0@"
        in message
    )


def test_configs_of_another_family_are_refused_both_ways(here: Path) -> None:
    found = refused("sdxl.safetensors::sd1")
    assert "holds a `text_encoder_2` (CLIPTextModel), and StableDiffusionPipeline of sd1 has none" in found
    assert "addition_embed_type is not text_time, and sdxl.safetensors is of Stable Diffusion XL's kind" in found
    assert "diffusers takes hf://stabilityai/stable-diffusion-xl-base-1.0@<commit>" in found
    found = refused("sd1.safetensors::sdxl")
    assert "sdxl/unet/config.json: " in found
    assert "addition_embed_type is text_time" in found


UNET, CLIP = "unet/config.json", "text_encoder/config.json"


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (UNET, {"block_out_channels": [32, 96]}, "block_out_channels are [32, 96], and the weights' [32, 64]"),
        (UNET, {"block_out_channels": [48, 64]}, "block_out_channels"),
        (UNET, {"block_out_channels": [32, 64, 64]}, "block_out_channels are [32, 64, 64], and the weights' [32, 64]"),
        (UNET, {"cross_attention_dim": 48}, "cross_attention_dim 48"),
        (UNET, {"in_channels": 9}, "in_channels 9"),
        (UNET, {"transformer_layers_per_block": 2}, "level 0 of `unet` has 2 blocks of attention by this config, and 1"),
        (UNET, {"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "level 0 of `unet` has 0 blocks of attention"),
        (UNET, {"layers_per_block": None}, "does not say how `unet` of sd1.safetensors is built"),
        (UNET, {"layers_per_block": 2}, "sd1.safetensors"),
        (CLIP, {"hidden_size": 64}, "hidden_size 64"),
        (CLIP, {"num_hidden_layers": 3}, "has weights of 2 layers"),
        ("vae/config.json", {"latent_channels": 16}, "latent_channels 16"),
        ("vae/config.json", {"up_block_types": 3}, "does not say how `vae`"),
    ],
)  # fmt: skip
def test_a_config_that_says_other_shapes_is_named(here: Path, file: str, fields: dict[str, Any], message: str) -> None:
    changed(here / "sd1" / file, **fields)
    found = problems("sd1.safetensors::sd1")
    assert message in "\n".join(map(str, found))
    assert {one.place for one in found} == {f"sd1/{file}"}


def test_what_a_file_predicts_is_held_against_the_scheduler(here: Path) -> None:
    write_headers(here / "v.safetensors", {**shapes(here, "sdxl"), "v_pred": ()})
    assert find_source("v.safetensors::sdxl", Path(), None).making  # whose scheduler says so
    changed(here / "sdxl/scheduler/scheduler_config.json", prediction_type="epsilon")
    (one,) = problems("v.safetensors::sdxl")
    assert one.place == "sdxl/scheduler/scheduler_config.json"
    assert "prediction_type is epsilon, and v.safetensors says by its tensor v_pred" in one.message
    assert find_source("sdxl.safetensors::sdxl", Path(), None).making  # which says nothing


def test_numbers_of_8_bits_are_refused(here: Path) -> None:
    write_headers(here / "eight.safetensors", shapes(here, "sd1"), "F8_E4M3")
    assert "has weights of 8 bits (F8_E4M3), which diffusers would take for plain ones" in refused(
        "eight.safetensors::sd1"
    )


def test_a_text_encoder_under_names_that_nobody_reads_is_not_passed_over(here: Path) -> None:
    old = {
        name.replace("transformer.text_model.", "transformer."): shape for name, shape in shapes(here, "sd1").items()
    }
    write_headers(here / "old.safetensors", old)
    assert "holds a text encoder under names that diffusers does not read (cond_stage_model.transformer." in refused(
        "old.safetensors::sd1"
    )


def test_what_neither_the_file_nor_the_folder_holds_is_named(here: Path) -> None:
    bare = {name: shape for name, shape in shapes(here, "sd1").items() if name.startswith(D)}
    write_headers(here / "unet.safetensors", bare)
    found = find_source("unet.safetensors::sd1", Path(), None)
    assert found.making
    assert set(found.making.parts) == {"unet"}
    for name in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        (here / "sd1" / name).unlink()
    assert "holds no `text_encoder`, `vae`, and neither does sd1" in refused("unet.safetensors::sd1").replace(
        "`vae`, `text_encoder`", "`text_encoder`, `vae`"
    )
    assert find_source("sd1.safetensors::sd1", Path(), None).making  # which has all of them itself


def flux(here: Path, *, guided: bool, **config: Any) -> str:
    """A FLUX of its real width and one layer of each kind, of which there is a header alone, and a folder of configs."""
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    with init_empty_weights():
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=guided)
    tensors = originals.flux({name: one.to("meta") for name, one in model.state_dict().items()})
    write_sparse(here / "flux.safetensors", {f"{D}{name}": tuple(one.shape) for name, one in tensors.items()})
    model.save_config(here / "flux/transformer")
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (here / "flux/model_index.json").write_text(json.dumps(index))
    changed(here / "flux/transformer/config.json", **config)
    return "flux.safetensors::flux"


def write_sparse(file: Path, named: Shapes) -> None:
    """A file of which only the header takes room."""
    header, end = {}, 0
    for name, shape in named.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def test_guidance_that_a_flux_has_is_in_its_config(here: Path) -> None:
    for guided in (True, False):
        assert find_source(flux(here, guided=guided), Path(), None).making
        (one,) = problems(flux(here, guided=guided, guidance_embeds=not guided))
        assert one.place == "flux/transformer/config.json"
        assert f"guidance_embeds is {str(not guided).lower()}, and by the weights of `transformer`" in one.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_norm": None}, 'qk_norm is null, and by the weights of `transformer` it is "rms_norm"'),
        ({"dual_attention_layers": []}, "dual_attention_layers is [], and by the weights of `transformer` it is [0]"),
        ({"dual_attention_layers": [1]}, "dual_attention_layers is [1]"),
    ],
)
def test_norms_and_second_attentions_of_sd3_are_in_its_config(here: Path, fields: dict[str, Any], message: str) -> None:
    folder = tiny_image(here, "sd3")
    write_original(folder, here / "sd3.safetensors", "sd3")
    assert find_source(f"sd3.safetensors::{folder}", Path(), None).making
    changed(folder / "transformer/config.json", **fields)
    (one,) = problems(f"sd3.safetensors::{folder}")
    assert one.place == f"{folder}/transformer/config.json"
    assert message in one.message


VAE = "vae/config.json"


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        (UNET, "use_linear_projection", True),
        (VAE, "use_quant_conv", False),
        (VAE, "use_post_quant_conv", False),
        (VAE, "mid_block_add_attention", False),
        (VAE, "layers_per_block", 2),
        (UNET, "mid_block_type", None),
    ],
)
def test_a_field_that_alone_decides_which_tensors_there_are_is_held_against_them(
    here: Path, file: str, field: str, value: object
) -> None:
    changed(here / "sd1" / file, **{field: value})
    (one,) = problems("sd1.safetensors::sd1")
    assert one.place == f"sd1/{file}"
    assert f"{field} is {json.dumps(value)}, and by the weights of `{file.split('/')[0]}`" in one.message


def test_the_levels_of_an_autoencoder_are_those_of_its_weights(here: Path) -> None:
    changed(here / "sd1" / VAE, block_out_channels=[16, 16, 16], down_block_types=["DownEncoderBlock2D"] * 3)
    assert any('by the weights of `vae` it is "2 levels"' in one.message for one in problems("sd1.safetensors::sd1"))


def test_the_class_of_another_familys_pipeline_is_refused(here: Path) -> None:
    changed(here / "sd1" / "model_index.json", _class_name="StableDiffusionXLPipeline")
    (one,) = problems("sd1.safetensors::sd1")
    assert one.place == "sd1/model_index.json"
    assert one.message == "_class_name is StableDiffusionXLPipeline, and its UNet is not of Stable Diffusion XL's kind"


@pytest.mark.parametrize(
    "name", [f"{D}extra.weight", f"{D}label_emb.0.0.bias", "first_stage_model.encoder.down.0.attn.0.q.weight"]
)
def test_tensors_that_nobody_knows_are_not_left_out_in_silence(here: Path, name: str) -> None:
    more = {f"{D}label_emb.0.0.weight": (2, 2)} if "label_emb" in name else {}
    write_headers(here / "x.safetensors", {**shapes(here, "sd1"), name: (2,), **more})
    (one,) = problems("x.safetensors::sd1")
    assert name in one.message or "Stable Diffusion XL's kind" in one.message


def test_what_diffusers_leaves_out_with_reason_is_no_hindrance(here: Path) -> None:
    for family in ("sd1", "sdxl"):
        more = {"first_stage_model.loss.logvar": (), "first_stage_model.model_ema.decay": (), "model_ema.decay": ()}
        more |= {"cond_stage_model.transformer.vision_model.x": (2,)} if family == "sd1" else {}
        write_headers(here / "x.safetensors", {**shapes(here, family), **more})
        found = find_source(f"x.safetensors::{family}", Path(), None).making
        known = find_source(f"{family}.safetensors::{family}", Path(), None).making
        assert found
        assert known
        assert {n: part.tensors for n, part in found.parts.items()} == {n: p.tensors for n, p in known.parts.items()}


def test_a_vae_beside_a_denoiser_without_a_prefix_is_no_part_of_it(here: Path) -> None:
    bare = {name.removeprefix(D): shape for name, shape in shapes(here, "sd1").items() if name.startswith(D)}
    vae = {
        f"vae.{name.removeprefix('first_stage_model.')}": shape
        for name, shape in shapes(here, "sd1").items()
        if name.startswith("first_stage_model.")
    }
    write_headers(here / "x.safetensors", {**bare, **vae, "ztsnr": ()})
    found = find_source("x.safetensors::sd1", Path(), None).making
    known = find_source("sd1.safetensors::sd1", Path(), None).making
    assert found
    assert known
    assert {name: part.tensors for name, part in found.parts.items()} == {
        name: part.tensors for name, part in known.parts.items() if name != "text_encoder"
    }


def lora(here: Path) -> str:
    write_headers(here / "x.safetensors", {"lora_unet_mid.lora_down.weight": (2, 2)})
    return "x.safetensors::sd1"


def pickled(here: Path) -> str:
    torch.save({"state_dict": {}}, here / "x.ckpt")
    return "x.ckpt::sd1"


def part(name: str) -> Callable[[Path], str]:
    def write(here: Path) -> str:
        write_headers(here / "x.safetensors", {name: (2, 2)})
        return "x.safetensors::sd1"

    return write


def adapter(here: Path) -> str:
    write_headers(here / "lora/adapter_model.safetensors", {"lora": (2, 2)})
    write_config(here / "lora", r=2)
    return "sd1.safetensors::lora"


def llama(here: Path) -> str:
    return f"sd1.safetensors::{language_model(here / 'lm')}"


def small_flux(here: Path) -> str:
    names = ("double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight", "double_blocks.0.img_attn.qkv.weight")
    write_headers(here / "x.safetensors", dict.fromkeys(names, (6, 2)))
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (here / "flux/transformer").mkdir(parents=True)
    (here / "flux/model_index.json").write_text(json.dumps(index))
    (here / "flux/transformer/config.json").write_text("{}")
    return "x.safetensors::flux"


OTHER: list[tuple[Callable[[Path], str], str]] = [
    (lora, "is an adapter, and no model by itself"),
    (pickled, "is no safetensors file, and reading others can run code"),
    (part("decoder.conv_in.weight"), "is a VAE, and no model by itself"),
    (part("control_model.input_hint_block.0.weight"), "is a ControlNet, and no model by itself"),
    (part("body.0.rdb1.conv1.weight"), "is an upscaler"),
    (part(f"{D}cap_embedder.0.weight"), "is of the family lumina2, whose layout pare does not know"),
    (part("model.embed_tokens.weight"), "is no checkpoint that pare knows"),
    (adapter, "this folder is an adapter"),
    (llama, "is no pipeline of diffusers, and the configs of sd1.safetensors were to be here"),
    (small_flux, "is a FLUX of width 6, and diffusers converts those of 3072 alone"),
    (lambda here: "nowhere.safetensors::sd1", "no such file"),
    (lambda here: "sdxl::sd1", "is a folder, and `::` stands between a checkpoint in one file and its configs"),
    (lambda here: "sd1.safetensors::nowhere", "no such model folder: the configs of sd1.safetensors were to be here"),
    (lambda here: "sd1.safetensors::hf://org/name", "hf://org/name is not pinned"),
    (lambda here: "sd1.safetensors::sdxl.safetensors", "which holds no configs"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), OTHER, ids=[message for _, message in OTHER])
def test_whatever_is_no_checkpoint_or_no_config_is_told_once(
    here: Path, make: Callable[[Path], str], message: str
) -> None:
    (one,) = problems(make(here))
    assert message in one.message


def test_a_header_alone_is_looked_at_where_nothing_is_hashed(here: Path) -> None:
    seen = look_at("sd1.safetensors::sd1", Path(), here / "cache/digests")
    assert seen
    assert seen.path.parent == here / "cache/views"
    assert look_at(f"sd1.safetensors::hf://org/name@{COMMIT}", Path(), None) is None
    assert not (here / "cache/digests").exists()
    again = look_at("sd1.safetensors::sd1", Path(), here / "cache/digests")
    assert again
    assert again.path == seen.path
    weights = seen.path / "unet/diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size > 100_000 > 512 * weights.stat().st_blocks  # which take no room


def test_parts_that_judge_images_stay_behind(here: Path) -> None:
    changed(here / "sd1/model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (here / "sd1/safety_checker").mkdir()
    (here / "sd1/safety_checker/config.json").write_text("{}")
    seen = find_source("sd1.safetensors::sd1", Path(), None).artifact
    assert "safety_checker" not in seen.components
    assert json.loads((seen.path / "model_index.json").read_text())["safety_checker"] == [None, None]
    assert json.loads((here / "sd1/model_index.json").read_text())["safety_checker"][1]


# In recipes


def plan(here: Path, model: object, folder: str = "") -> Plan:
    place = here / folder / "r.yaml"
    place.parent.mkdir(exist_ok=True)
    place.write_text(f"schema: 1\nname: r\nmodel: {json.dumps(model)}\n")
    return compress.plan(place, cache=here / "cache")


def test_both_spellings_are_one_model(here: Path) -> None:
    long = plan(here, {"file": "./sd1.safetensors", "config": "./sd1"})
    short = plan(here, "./sd1.safetensors::./sd1")
    assert long.source.key == short.source.key
    assert long.recipe.model == short.recipe.model
    moved = plan(here, {"file": "../sd1.safetensors", "config": "../sd1"}, "elsewhere")
    assert moved.source.key == short.source.key, "both start where the recipe lies"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"file": "./x.safetensors"}, "model.config is missing"),
        ({"file": "./x.safetensors", "config": "./a", "scale": 1}, "model.scale: unknown key"),
        ({"file": 1, "config": "./a"}, "model.file"),
        ({}, "model.file is missing"),
        ("x.safetensors::./a", 'model "x.safetensors" is no file, as what stands before `::` is'),
        ("./x.safetensors::a", 'config "a" is neither a zoo model, a folder nor a hub model'),
        ("./x.safetensors::hf://org/name", "config hf://org/name is not pinned to a commit"),
    ],
)
def test_a_mistake_in_either_is_located(model: object, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_values({"schema": 1, "name": "r", "model": model}, "r.yaml")
    assert message in str(caught.value)
    assert all(one.fix and one.place for one in caught.value.problems)


def test_the_schema_has_both(here: Path) -> None:
    either = recipe_schema()["properties"]["model"]["anyOf"]
    assert {one["type"] for one in either} == {"string", "object"}
    assert sorted(either[1]["required"]) == ["config", "file"]


@pytest.mark.parametrize(
    "model", ["./x.safetensors::hf://org/name@main", "{file: ./x.safetensors, config: hf://org/name@main}"]
)
def test_the_configs_of_the_hub_are_pinned_as_models_are(here: Path, model: str) -> None:
    (here / "r.yaml").write_text(f"schema: 1\nname: r\nmodel: {model}\n")
    assert hub_references(here / "r.yaml") == ("hf://org/name@main",)


def test_the_error_of_a_plan_is_at_the_models_line(here: Path) -> None:
    with pytest.raises(ManyProblems) as caught:
        plan(here, {"file": "./sdxl.safetensors", "config": "./sd1"})
    assert {one.place for one in caught.value.problems} == {f"{here / 'r.yaml'}:3:1"}


def test_an_opened_file_is_no_model_by_itself(here: Path) -> None:
    with pytest.raises(ModelError, match="which holds no configs"):
        compress.load(here / "sd1.safetensors")
