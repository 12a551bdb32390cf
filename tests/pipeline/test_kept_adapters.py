"""Adapters that stay beside a pipeline while it is pruned, taught and packed: what comes of them loads by plain diffusers and does what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import compress
from compress.adapters.keeping import read
from compress.artifact import Artifact, derive
from compress.errors import ModelError, StageFailed
from compress.events import silent
from compress.execution.execute import execute
from compress.machine.devices import AS_STORED
from compress.making.ready import ready
from compress.model.describing import describe
from compress.opening import open_images
from compress.planning.plan import make_plan
from compress.recipe.reading import read_values
from compress.store.cache import Cache
from tests.adapters import Branch, beside, branches, of_kinds, shapes, write_diffusers
from tests.stages import apply
from tests.tiny import tiny_diffusion

pytest.importorskip("peft")

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1")
STRENGTH = 0.7
BARE = replace(AS_STORED, adapters=False)  # as stages open models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, and beside its folder a LoRA of its UNet and its text encoder."""
    folder = tmp_path_factory.mktemp("kept")
    base = tiny_diffusion(folder)
    parts = {
        "unet": branches(of_kinds(shapes(base / UNET), LAYERS)),
        "text_encoder": branches(of_kinds(shapes(base / TEXT), ["q_proj", "fc1"]), seed=1),
    }
    write_diffusers(folder / "lora", parts, alphas=False)
    return base


@pytest.fixture(scope="module")
def kept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Cache(tmp_path_factory.mktemp("cache"))
    return ready(make_plan(recipe(model), store).source, store, silent).artifact


def recipe(model: Path, *stages: Mapping[str, Any], **more: Any) -> Any:
    named = {"path": str(model.parent / "lora"), "fuse": False, "scale": STRENGTH}
    values = {"schema": 1, "name": "kept", "model": str(model), "adapter": named, "stages": list(stages), **more}
    return read_values(values, "test")[0]


def generated(artifact: Artifact, *, adapters: bool = True) -> np.ndarray:
    task = open_images(artifact, AS_STORED if adapters else BARE)
    return task.images(task.examples[:2], 0, num_inference_steps=2)[0].astype(np.float64)


def called(unet: torch.nn.Module) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return unet(torch.randn(2, 4, 8, 8, generator=g), 7, torch.randn(2, 16, 32, generator=g)).sample


def as_branches(artifact: Artifact) -> dict[str, Branch]:
    """The pairs that an artifact keeps for its UNet, as branches beside its layers."""
    found = read(artifact.path / "adapters/lora")["unet"]
    return {name: Branch(pair.down, pair.up, pair.alpha / pair.down.shape[0]) for name, pair in found.items()}


def test_the_model_is_as_it_was_and_the_adapter_acts_at_its_scale(model: Path, kept: Artifact) -> None:
    before, after = load_file(model / UNET), load_file(kept.path / UNET)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    unet = open_images(kept).component("unet")
    plain = open_images(kept, BARE).component("unet")
    without = called(plain)
    with_pairs = called(beside(plain, as_branches(kept), STRENGTH))
    assert torch.allclose(called(unet), with_pairs, atol=1e-5)
    assert (with_pairs - without).abs().max() > 1e-3


def test_plain_diffusers_loads_what_is_kept(kept: Artifact) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(kept.path)
    pipeline.load_lora_weights(kept.path / "adapters/lora", adapter_name="lora")
    pipeline.set_adapters(["lora"], [STRENGTH])
    assert pipeline.get_list_adapters() == {"unet": ["lora"], "text_encoder": ["lora"]}
    assert torch.equal(called(pipeline.unet), called(open_images(kept).component("unet")))


def test_load_gives_it_with_its_adapters_or_without(kept: Artifact) -> None:
    assert compress.load(kept).get_active_adapters() == ["lora"]
    assert not hasattr(compress.load(kept, adapters=False).unet, "peft_config")
    assert not np.array_equal(generated(kept), generated(kept, adapters=False))


def test_blocks_that_go_take_their_updates_with_them(kept: Artifact, tmp_path: Path) -> None:
    shorter, notes = apply("prune.depth", kept, tmp_path / "out", opening=BARE, ratio=0.3, samples=1)
    before, after = as_branches(kept), as_branches(shorter)
    layers = {name.removesuffix(".weight") for name in load_file(shorter.path / UNET)}
    assert after.keys() <= layers
    assert len(after) < len(before)
    assert all(any(torch.equal(pair.down, old.down) for old in before.values()) for pair in after.values())
    dropped = next(note.facts["adapter lora dropped"] for note in notes if "adapter lora dropped" in note.facts)
    assert dropped == len(before) - len(after)
    unet = open_images(shorter).component("unet")
    assert torch.allclose(
        called(unet), called(beside(open_images(shorter, BARE).component("unet"), after, STRENGTH)), atol=1e-5
    )
    assert len(as_branches(kept)) == len(before)  # through no link was the input's file changed


def test_channels_that_go_take_rows_and_columns_of_its_pairs_with_them(kept: Artifact, tmp_path: Path) -> None:
    narrow, _ = apply("prune.width", kept, tmp_path / "out", opening=BARE, ratio=0.25, align=1)
    before, after, weights = as_branches(kept), as_branches(narrow), load_file(narrow.path / UNET)
    assert after.keys() == before.keys()
    for name, pair in after.items():
        assert pair.scale == before[name].scale
        assert (pair.up.shape[0], *pair.down.shape[1:]) == tuple(weights[f"{name}.weight"].shape)
    assert any(after[name].down.shape != before[name].down.shape for name in before)
    unet = open_images(narrow).component("unet")
    with_pairs = called(beside(open_images(narrow, BARE).component("unet"), after, STRENGTH))
    assert torch.allclose(called(unet), with_pairs, atol=1e-5)


def test_a_narrower_model_with_its_cut_adapter_is_the_fused_one_cut_alike(
    kept: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.algorithms import coupled_units

    cut: list[Any] = []
    whole = coupled_units.cut_state

    def hear(state: Any, groups: Any, chosen: Any) -> Any:
        cut.append((groups, chosen))
        return whole(state, groups, chosen)

    monkeypatch.setattr(coupled_units, "cut_state", hear)
    narrow, _ = apply("prune.width", kept, tmp_path / "out", opening=BARE, ratio=0.25, align=1)
    old = load_file(kept.path / UNET)
    fused = {**old}
    for name, pair in as_branches(kept).items():
        fused[f"{name}.weight"] = old[f"{name}.weight"] + _added(pair)
    expected = whole(fused, *cut[0])
    for name, pair in as_branches(narrow).items():
        weight = load_file(narrow.path / UNET)[f"{name}.weight"]
        assert torch.allclose(weight + _added(pair), expected[f"{name}.weight"], atol=1e-5)


def _added(pair: Branch) -> torch.Tensor:
    return pair.scale * (pair.up.flatten(1) @ pair.down.flatten(1)).unflatten(1, pair.down.shape[1:])


def test_a_text_encoder_that_is_cut_keeps_the_adapter_loadable(kept: Artifact, tmp_path: Path) -> None:
    shorter, _ = apply(
        "prune.depth", kept, tmp_path / "out", opening=BARE, ratio=0.5, samples=1, components=("text_encoder",)
    )
    assert len(read(shorter.path / "adapters/lora")["text_encoder"]) == 2
    assert np.isfinite(generated(shorter)).all()


def test_one_of_which_nothing_is_left_is_refused(model: Path, tmp_path: Path) -> None:
    lora = {"unet": branches(of_kinds(shapes(model / UNET), ["mid_block.attentions.0.proj_in"]))}
    write_diffusers(tmp_path / "mid", lora, alphas=False)
    named = {"path": str(tmp_path / "mid"), "fuse": False}
    (made,) = read_values({"schema": 1, "name": "mid", "model": str(model), "adapter": named}, "test")
    store = Cache(tmp_path / "cache")
    small = ready(make_plan(made, store).source, store, silent).artifact
    with pytest.raises(StageFailed, match="all layers that the adapter mid changes would go"):
        apply("prune.depth", small, tmp_path / "out", opening=BARE, ratio=0.99, samples=1)


def test_a_chain_leaves_an_adapter_that_still_acts(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    stages = (
        {"prune.width": {"ratio": 0.25, "align": 1}},
        {"distill.features": {"steps": 2, "prompts": 8}},
        {"quantize.torchao": {"components": ["unet"]}},
    )
    data = {"train": "zoo://digits/train", "calibration": "zoo://digits/validation"}
    store = Cache(tmp_path / "cache")
    done = execute(make_plan(recipe(model, *stages, data=data), store), store, silent)
    last = done[-1].artifact
    assert last.packed(["unet"]) == ("unet",)
    assert [len(one.artifact.adapters) for one in done] == [1, 1, 1]
    assert not np.array_equal(generated(last), generated(last, adapters=False))


@pytest.mark.slow
def test_a_compiled_denoiser_has_it_in_its_blocks(kept: Artifact, tmp_path: Path) -> None:
    hooked, _ = apply("accelerate.compile", kept, tmp_path / "out", opening=BARE)
    assert hooked.adapters == kept.adapters
    plain = generated(kept)
    assert np.abs(generated(hooked) - plain).max() <= 1
    assert np.abs(generated(hooked, adapters=False) - plain).max() > 1


def test_updates_without_a_place_are_an_error_and_no_warning(kept: Artifact, tmp_path: Path) -> None:
    made = derive(kept, tmp_path / "out", link=False)
    file = made.path / "adapters/lora/pytorch_lora_weights.safetensors"
    tensors = {key.replace("mid_block", "no_block"): value for key, value in load_file(file).items()}
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    save_file(tensors, file, metadata)
    with pytest.raises(ModelError):
        open_images(made)


def test_the_saved_folder_says_what_goes_with_it(kept: Artifact) -> None:
    assert describe(kept.path).adapters["lora"].components == ("text_encoder", "unet")
