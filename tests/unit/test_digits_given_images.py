"""`zoo://digits-editing` and `zoo://digits-inpainting`: stock pipelines on the parts of `zoo://digits-diffusion`, taught with what those pipelines
give them, and doing what they are for on held-out items."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)

from compress.model.describing import describe
from compress.zoo import MODELS, open_zoo_data, scenes, zoo_model
from compress.zoo.digit_classifier import marks, shown
from compress.zoo.training import digits_editing, digits_inpainting, digits_vae, given_images, score
from compress.zoo.training.digits_diffusion import scheduler, velocity_loss

KINDS: dict[str, Any] = {
    "digits-editing": StableDiffusionInstructPix2PixPipeline,
    "digits-inpainting": StableDiffusionInpaintPipeline,
}
TASKS = {"digits-editing": "instruction_editing", "digits-inpainting": "inpainting"}
LESSONS: dict[str, tuple[Callable[..., Any], str, int]] = {
    "digits-editing": (digits_editing.Batches, "zoo://digits-edits/train", 8),
    "digits-inpainting": (digits_inpainting.Batches, "zoo://digits-holes/train", 9),
}
DONOR = MODELS / "digits-diffusion"
COUNT = 64


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(given_images, "CHECKPOINTS", tmp_path / "training")
    return tmp_path / "training"


@pytest.fixture(params=LESSONS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(folder: Path, **how: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, **how)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---------------------------------------------------------------- the folder


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_opens_whole_in_the_type_asked_for_as_its_own_class(name: str, dtype: torch.dtype | None) -> None:
    pipeline = opened(zoo_model(name), **({} if dtype is None else {"dtype": dtype}))
    assert type(pipeline) is KINDS[name]
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for part in modules for p in part.parameters()} == {dtype or torch.float32}
    assert describe(zoo_model(name)).task == TASKS[name]


def test_an_export_shares_what_it_did_not_train_and_may_be_written_over(name: str, tmp_path: Path) -> None:
    before = [(DONOR / file).read_bytes() for file in given_images.SHARED]
    channels = LESSONS[name][2]
    for step in (1, 2):  # a training exports again and again
        given_images.export(KINDS[name], given_images.new_unet(channels), tmp_path / name, {"steps": step})
    for folder in (tmp_path / name, zoo_model(name)):
        for file, content in zip(given_images.SHARED, before, strict=True):
            assert (folder / file).is_symlink()
            assert (folder / file).read_bytes() == (DONOR / file).read_bytes() == content
    assert describe(tmp_path / name).task == TASKS[name]


def test_a_part_that_is_not_what_it_was_made_of_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"otherwise")
    with pytest.raises(RuntimeError, match="is not"):
        given_images._share(tmp_path / "other", DONOR / given_images.SHARED[0])
    assert (tmp_path / "other").read_bytes() == b"otherwise"


# ---------------------------------------------------------------- where it starts


def test_half_of_the_wider_unets_channels_stay_whole_groups_and_heads() -> None:
    wide = UNet2DConditionModel.from_pretrained(DONOR / "unet", torch_dtype=torch.float32).state_dict()
    narrow = given_images.new_unet(9).state_dict()
    assert narrow.keys() == wide.keys()
    kept = [c for c in range(64) if c % 4 < 2]
    assert torch.equal(narrow["conv_in.weight"][:, :4], wide["conv_in.weight"][kept])
    assert not narrow["conv_in.weight"][:, 4:].any()
    scale = given_images.MORE
    assert torch.equal(narrow["conv_out.weight"], wide["conv_out.weight"][:, kept] * scale)
    of_text = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert torch.equal(narrow[of_text], wide[of_text][kept])  # it reads all of the text


def test_a_unet_that_starts_there_is_nearer_to_the_scenes_than_one_that_starts_anywhere() -> None:
    codes = given_images.encoded(digits_vae.load(shipped=True), _scenes(COUNT)) * 0.60741
    texts = given_images.read([scenes.scene("train", index).caption for index in range(COUNT)])
    losses = {}
    for start in ("here", "anywhere"):
        torch.manual_seed(0)
        unet = given_images.new_unet(4)
        if start == "anywhere":
            unet = UNet2DConditionModel.from_config(unet.config)
        torch.manual_seed(1)
        with torch.no_grad():
            losses[start] = float(velocity_loss(unet, scheduler(), codes, texts.hidden[texts.which]))
    assert losses["here"] < 0.9 * losses["anywhere"]


def _scenes(count: int) -> list[Any]:
    return [scenes.render(scenes.scene("train", index)) for index in range(count)]


# ---------------------------------------------------------------- what it learns from


def test_it_learns_from_what_the_stock_pipeline_gives_it(name: str, checkpoints: Path) -> None:
    make, source, channels = LESSONS[name]
    batches = make(digits_vae.load(shipped=True), COUNT)
    pipeline = opened(zoo_model(name))
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, named: calls.append((args[0], named["encoder_hidden_states"])), with_kwargs=True
    )
    items = open_zoo_data(source).first(4)
    score.generate(pipeline, items, steps=1, call=score.EXAMS[TASKS[name]].call)
    ((seen, hidden),) = calls
    beside = batches.before if name == "digits-editing" else batches.beside
    # Guided thrice: with both, with the image alone, with neither; or twice: without the text, and with it.
    rows = seen[:4] if name == "digits-editing" else seen[-4:]
    said = hidden[:4] if name == "digits-editing" else hidden[-4:]
    assert seen.shape[1] == channels
    # The stock inpainting pipeline draws from the latents' distribution, whose spread is a hundredth of theirs; codes are made in bfloat16.
    assert float((rows[:, 4:] - beside[:4]).abs().mean()) < 0.03
    if name == "digits-editing":
        assert not seen[-4:, 4:].any()
    texts = batches.texts
    assert torch.allclose(said, texts.hidden[texts.which[:4]], atol=1e-4)
    blank = hidden[-4:] if name == "digits-editing" else hidden[:4]
    assert torch.allclose(blank, texts.blank.expand_as(blank), atol=1e-4)


def test_what_it_is_to_generate_is_what_follows(name: str, checkpoints: Path) -> None:
    make, source, _ = LESSONS[name]
    vae = digits_vae.load(shipped=True)
    batches = make(vae, COUNT)
    codes = batches.after if name == "digits-editing" else batches.scene
    items = open_zoo_data(source).first(4)
    with torch.no_grad():
        decoded = vae.decode(codes[:4] / vae.config.scaling_factor).sample.clamp(-1, 1)
    wanted = np.stack([item.image() for item in items if item.image]).astype(np.float32) / 127.5 - 1
    assert np.abs(decoded.permute(0, 2, 3, 1).numpy() - wanted).mean() < 0.06
    assert (checkpoints / f"{name}-latents.safetensors").is_file()
    again = make(vae, COUNT)  # from the file
    assert torch.equal(codes, again.after if name == "digits-editing" else again.scene)


def test_a_batch_is_a_function_of_its_number_and_some_of_it_is_left_out(name: str, checkpoints: Path) -> None:
    batches = LESSONS[name][0](digits_vae.load(shipped=True), COUNT)
    one, two = (_seeded(batches, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], _seeded(batches, 4)[0])
    many = [_seeded(batches, step) for step in range(60)]
    blank = torch.cat([(h == batches.texts.blank).flatten(1).all(1) for _, _, h in many])
    assert float(blank.float().mean()) == pytest.approx(0.1, abs=0.02)
    if name == "digits-editing":
        unseen = torch.cat([~b.flatten(1).any(1) for _, b, _ in many])
        assert float(unseen.float().mean()) == pytest.approx(0.1, abs=0.02)
        assert float((unseen & blank).float().mean()) == pytest.approx(0.05, abs=0.015)


def _seeded(batches: Any, step: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(step)
    return tuple(batches(step))


def test_training_goes_on_and_exports_what_it_came_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.zoo.training import loop

    monkeypatch.setattr(loop, "CHECKPOINTS", tmp_path / "training")
    monkeypatch.setattr(given_images, "CHECKPOINTS", tmp_path / "training")
    asked = argparse.Namespace(steps=2, rate=1e-3, minutes=1000, scenes=COUNT, out=tmp_path / "out", from_shipped=True)
    batches = digits_inpainting.Batches(digits_vae.load(shipped=True), COUNT)
    setup = given_images.Setup("digits-inpainting", "zoo://digits-holes/train", KINDS["digits-inpainting"], 9, batches)
    spent = describe(zoo_model("digits-inpainting")).path / "training.json"
    before = json.loads(spent.read_text())["steps"]
    asked.steps = before + 2
    given_images.learn(setup, asked)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == before + 2
    assert describe(tmp_path / "out").task == "inpainting"


# ---------------------------------------------------------------- what is shipped


@pytest.mark.parametrize("group", ["digit", "ink", "paper"])
def test_an_edit_is_the_one_asked_for_and_the_rest_stays(group: str) -> None:
    exam = score.EXAMS["instruction_editing"]
    items = score.held_out(exam, group, 8)
    images = score.generate(opened(zoo_model("digits-editing")), items, call=exam.call)
    digits, inks = marks([shown(item) for item in items], images)
    assert digits.mean() >= 0.75
    assert inks.mean() >= 0.75
    untouched, _ = marks([item.before for item in items], images)
    if group == "digit":
        assert untouched.mean() <= 0.25
    if group != "paper":
        assert score.decibels_kept(exam, items, images) > 25


def test_a_hole_is_filled_with_what_its_caption_says() -> None:
    exam = score.EXAMS["inpainting"]
    pipeline = opened(zoo_model("digits-inpainting"))
    items = score.held_out(exam, "one_digit", 4) + score.held_out(exam, "two_digits", 4)
    images = score.generate(pipeline, items, call=exam.call)
    digits, inks = marks([item.text for item in items], images)
    assert digits.mean() >= 0.75
    assert inks.mean() >= 0.75
    assert score.decibels_kept(exam, items, images) > 25
