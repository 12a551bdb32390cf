"""What a plan says of adapters that stay beside a model: which stages carry them on, and which are refused, with a way out that works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import compress
from compress.adapters.keeping import Pair, named_after, read, write
from compress.artifact import Artifact, Component, KeptAdapter, holding, write_manifest
from compress.catalogue import find_stage, find_task, stage_names
from compress.errors import RecipeError, Refusal
from compress.machine import deps
from compress.model.describing import describe
from compress.pipelines.lora_parts import lora_parts
from compress.planning.plan import Plan
from compress.planning.show import plan_text
from compress.publishing.model_cards import Described, write_card
from compress.tasks import Usage
from tests.adapters import branches, of_kinds, shapes, write_diffusers, write_peft
from tests.tiny import tiny_diffusion, tiny_llama

ATTENTION = ("to_q", "to_v", "to_out.0")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    base = tiny_diffusion(folder)
    write_diffusers(folder / "lora", {"unet": branches(of_kinds(shapes(base / UNET), ATTENTION))})
    write_diffusers(
        folder / "vae-lora",
        {"vae": branches(of_kinds(shapes(base / "vae/diffusion_pytorch_model.safetensors"), ["to_q"]))},
    )
    return base


@pytest.fixture(autouse=True)
def _as_if_peft_were_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deps, "installed", lambda module: True)


def plan(model: Path, cache: Path, *stages: Mapping[str, Any], adapter: Any = None, **more: Any) -> Plan:
    from compress.planning.plan import make_plan
    from compress.recipe.reading import read_values
    from compress.store.cache import Cache

    named = {"path": str(model.parent / "lora"), "fuse": False} if adapter is None else adapter
    values = {"schema": 1, "name": "kept", "model": str(model), "adapter": named, "stages": list(stages), **more}
    (recipe,) = read_values(values, "test")
    return make_plan(recipe, Cache(cache))


def refused(model: Path, cache: Path, *stages: Mapping[str, Any], **more: Any) -> list[tuple[str, str]]:
    with pytest.raises(RecipeError) as caught:
        plan(model, cache, *stages, **more)
    return [(p.message, p.fix) for p in caught.value.problems]


def test_it_is_shown_and_has_a_key_of_its_own(model: Path, tmp_path: Path) -> None:
    found = plan(model, tmp_path)
    assert f"with adapter {model.parent / 'lora'}, kept beside it as lora" in plan_text(found)
    assert found.source.artifact.adapters == {"lora": KeptAdapter("adapters/lora", 1.0, ("unet",))}
    fused = plan(model, tmp_path, adapter=str(model.parent / "lora"))
    assert fused.source.artifact.adapters == {}
    assert fused.source.key != found.source.key
    half = plan(model, tmp_path, adapter={"path": str(model.parent / "lora"), "fuse": False, "scale": 0.5})
    assert half.source.artifact.adapters["lora"].scale == 0.5
    assert half.source.key != found.source.key


def test_one_that_is_to_be_fused_has_the_key_that_it_always_had(model: Path, tmp_path: Path) -> None:
    named = str(model.parent / "lora")
    assert (
        plan(model, tmp_path, adapter=named).source.key
        == plan(model, tmp_path, adapter={"path": named, "fuse": True}).source.key
    )


CARRYING: list[Mapping[str, Any]] = [
    {"quantize.torchao": {"components": ["unet"]}},
    {"accelerate.steps": {"steps": 2}},
    {"build.openvino": {"components": ["vae"]}},
]


@pytest.mark.parametrize("step", CARRYING, ids=str)
def test_stages_that_carry_it_on_are_planned_and_leave_it(model: Path, tmp_path: Path, step: Mapping[str, Any]) -> None:
    (node,) = plan(model, tmp_path, step).nodes
    assert node.expected.adapters.keys() == {"lora"}


REFUSED: list[tuple[Mapping[str, Any], str]] = [
    (
        {"quantize.bitsandbytes": {"components": ["unet"], "mode": "int8"}},
        "what becomes of an adapter there is not defined",
    ),
    ({"build.openvino": {"components": ["unet"]}}, "an engine has its weights inside"),
    ({"build.compiled": {"components": ["unet"]}}, "an engine has its weights inside"),
    ({"build.fastest": {"components": ["unet"]}}, "an engine has its weights inside"),
]


@pytest.mark.parametrize(("step", "why"), REFUSED, ids=lambda one: str(one)[:40])
def test_what_would_leave_it_behind_is_refused(model: Path, tmp_path: Path, step: Mapping[str, Any], why: str) -> None:
    more = {"data": {"calibration": "zoo://digits/validation"}}
    found = [one for one in refused(model, tmp_path, step, **more) if "adapter" in one[0]]
    ((message, fix),) = found
    assert "the adapter lora is kept beside `unet`" in message
    assert why in message
    assert "leave out fuse: false" in fix
    assert not [one for one in ways_out(model, tmp_path, step, **more) if "adapter" in one]


def ways_out(model: Path, cache: Path, step: Mapping[str, Any], **more: Any) -> list[str]:
    """What is still wrong where the adapter is fused: what this machine lacks."""
    try:
        plan(model, cache, step, adapter=str(model.parent / "lora"), **more)
    except RecipeError as error:
        return [p.message for p in error.problems]
    return []


def test_every_stage_that_makes_weights_says_whether_it_carries_adapters() -> None:
    carrying = {name for name in stage_names() if find_stage(name).carries}
    assert carrying == {
        *("prune.depth", "prune.width", "distill.features", "distill.steps", "distill.guidance"),
        "quantize.torchao",
    }
    assert all(find_stage(name).makes for name in carrying)


def test_what_cannot_stay_beside_a_model_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = {"path": str(model.parent / "vae-lora"), "fuse": False}
    ((message, fix),) = refused(model, tmp_path, adapter=vae)
    assert "changes `vae`, and StableDiffusionPipeline loads adapters into text_encoder and unet alone" in message
    assert "leave out fuse: false" in fix
    monkeypatch.setattr(deps, "installed", lambda module: module != "peft")
    assert refused(model, tmp_path)[0][1] == "pip install 'pare[lora]'"


def test_a_language_model_has_none_beside_it(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    write_peft(tmp_path / "lora", branches(of_kinds(shapes(base / "model.safetensors"), ["q_proj"])))
    ((message, _),) = refused(base, tmp_path / "cache", adapter={"path": str(tmp_path / "lora"), "fuse": False})
    assert "which pare does for pipelines alone" in message


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("StableDiffusionPipeline", {"unet", "text_encoder"}),
        ("StableDiffusionXLPipeline", {"unet", "text_encoder", "text_encoder_2"}),
        ("FluxPipeline", {"transformer", "text_encoder"}),
        ("StableDiffusionInstructPix2PixPipeline", {"unet", "text_encoder"}),
        ("DiTPipeline", set()),
        ("NoSuchPipeline", set()),
        ("", set()),
    ],
)
def test_which_parts_take_adapters_is_read_from_the_source(kind: str, parts: set[str]) -> None:
    assert lora_parts(kind) == parts


@pytest.mark.parametrize(
    ("path", "taken", "name"),
    [
        ("./ink/", [], "ink"),
        ("./my.ink-2.safetensors", [], "my_ink_2"),
        ("zoo://digits-teal", ["digits_teal"], "digits_teal_2"),
        (f"hf://org/ink@{'0' * 40}", [], "ink"),
        ("...", [], "adapter"),
    ],
)
def test_it_is_called_as_its_folder_is(path: str, taken: list[str], name: str) -> None:
    assert named_after(path, taken) == name


def test_what_is_written_is_read_again_whatever_ranks_and_alphas_it_has(tmp_path: Path) -> None:
    pairs = {
        "unet": {
            "a.to_q": Pair(torch.ones(2, 3), torch.ones(4, 2), 2.0),
            "a.to_k": Pair(torch.ones(2, 3), torch.ones(4, 2), 2.0),
            "b.a.to_q": Pair(torch.ones(3, 3), torch.ones(4, 3), 1.5),
        },
        "text_encoder": {"text_model.x.q_proj": Pair(torch.ones(1, 3), torch.ones(4, 1), 7.0)},
    }
    write(pairs, tmp_path)
    found = read(tmp_path)
    assert {c: sorted(layers) for c, layers in found.items()} == {c: sorted(layers) for c, layers in pairs.items()}
    for component, layers in pairs.items():
        for name, pair in layers.items():
            assert found[component][name].alpha == pytest.approx(pair.alpha)
            assert torch.equal(found[component][name].down, pair.down)


def test_writing_again_leaves_a_linked_file_alone(tmp_path: Path) -> None:
    pair = Pair(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    write({"unet": {"a": pair}}, tmp_path / "one")
    (tmp_path / "two").mkdir()
    file = "pytorch_lora_weights.safetensors"
    (tmp_path / "two" / file).hardlink_to(tmp_path / "one" / file)
    write({"unet": {"b": pair}}, tmp_path / "two")
    assert set(load_file(tmp_path / "one" / file)) == {"unet.a.lora_A.weight", "unet.a.lora_B.weight"}


def test_the_manifest_tells_of_it_and_no_component_owns_its_weights(tmp_path: Path) -> None:
    unet = Component("torch", "unet", "UNet2DConditionModel")
    kept = KeptAdapter("adapters/ink", 0.5, ("unet",))
    made = Artifact(tmp_path, "text_to_image", {"unet": unet}, adapters={"ink": kept})
    write({"unet": {"a": Pair(torch.ones(1, 2), torch.ones(2, 1), 1.0)}}, tmp_path / "adapters/ink")
    write_manifest(made)
    assert describe(tmp_path).adapters == {"ink": kept}
    assert holding(made, ["unet"]) == ()
    write_manifest(Artifact(tmp_path, "text_to_image", {"unet": unet}))
    assert "adapters" not in (tmp_path / "pare.json").read_text()


def test_the_zoo_has_an_adapter_and_names_it_where_another_is_meant(tmp_path: Path) -> None:
    text = "schema: 1\nname: a\nmodel: zoo://digits-diffusion\nadapter: {path: zoo://digits-teel, fuse: false}\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match="the zoo has no adapter `digits-teel`") as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    assert "digits-teal" in str(caught.value)


@pytest.mark.parametrize("more", [{"mode": "int4_weights", "group_size": 32}, {"mode": "float8"}], ids=str)
def test_other_modes_than_int8_are_refused_and_that_is_their_remedy(tmp_path: Path, more: Mapping[str, Any]) -> None:
    base = tiny_diffusion(tmp_path, dtype=torch.bfloat16)
    write_diffusers(tmp_path / "lora", {"unet": branches(of_kinds(shapes(base / UNET), ATTENTION))})
    stage = find_stage("quantize.torchao")
    artifact = plan(base, tmp_path / "cache").source.artifact
    why = stage.refuse(artifact, stage.params(components=("unet",), **more))
    assert "peft lays adapters on torchao's int8 weights alone, and lora is kept beside the model" in why
    assert isinstance(why, Refusal)
    assert "mode: int8_weights" in why.fix
    assert not stage.refuse(artifact, stage.params(components=("unet",), mode="int8_weights"))


def test_it_is_handed_over_in_lines_of_python() -> None:
    usage = Usage("./small", True, adapters=(("ink", "adapters/ink", 1.0),))
    lines = find_task("text_to_image").usage(usage)
    load = 'generate.load_lora_weights("./small", subfolder="adapters/ink", weight_name="pytorch_lora_weights.safetensors", adapter_name="ink")'
    assert load in lines
    assert not [line for line in lines if "set_adapters" in line]
    half = find_task("text_to_image").usage(replace(usage, adapters=(("ink", "adapters/ink", 0.5),)))
    assert 'generate.set_adapters(["ink"], [0.5])' in half
    assert not [line for line in find_task("text_to_image").usage(replace(usage, stock=False)) if "lora" in line]


def test_a_model_card_names_it_and_the_library_that_loads_it(tmp_path: Path) -> None:
    kept = {"ink": KeptAdapter("adapters/ink", 0.5, ("unet",))}
    made = Artifact(
        tmp_path, "text_to_image", {"unet": Component("torch", "unet", "UNet2DConditionModel")}, adapters=kept
    )
    card = str(write_card(made, (), Described("me/small"), code=("…",), own=""))
    assert "The LoRA ink for unet, in `adapters/ink`, goes with it (scale 0.5)." in card
    assert "pip install torch transformers diffusers peft" in card
