"""The exported diffusion folder opens with plain diffusers, in either type, and generates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from compress.zoo import scenes
from compress.zoo.training import digits_diffusion, score
from compress.zoo.training.captions import WORDS, new_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export of untrained parts: this is about the folder, not about the weights."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("digits-diffusion")
    tokenizer = new_tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
    )
    model = digits_diffusion.Denoiser(len(tokenizer), tokenizer.eos_token_id)
    digits_diffusion.export(model, vae, out, {"steps": 0})
    return out


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_it_opens_whole_in_the_type_asked_for_and_generates(folder, dtype):
    asked = {} if dtype is None else {"dtype": dtype}
    pipeline = StableDiffusionPipeline.from_pretrained(folder, **asked)
    types = {p.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()}
    assert types == {dtype or torch.float32}
    generated = score.generate(pipeline, ["a red three on white paper"], steps=2)
    assert generated.shape == (1, 64, 64, 3)
    assert generated.dtype == np.uint8


def test_the_stored_weights_are_bfloat16_and_small(folder):
    from safetensors import safe_open

    files = list(folder.rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(k).get_dtype() for k in tensors.keys()} == {"BF16"}  # noqa: SIM118
    assert sum(f.stat().st_size for f in files) < 15_000_000
    assert json.loads((folder / "training.json").read_text()) == {"steps": 0}


def test_images_do_not_depend_on_the_rest_of_the_batch(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    captions = ["a red three on white paper", "a blue seven on pink paper"]
    together, alone = score.generate(pipeline, captions, steps=2), score.generate(pipeline, captions[:1], steps=2)
    assert np.abs(together[0].astype(int) - alone[0]).max() <= 1


def test_every_word_of_the_grammar_is_one_token():
    tokenizer = new_tokenizer()
    caption = "a red three left of a blue seven on yellow paper"
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3  # the word between the two marks
    assert len(tokenizer(caption).input_ids) == len(caption.split()) + 2 <= tokenizer.model_max_length


def test_scored_captions_are_held_out():
    one, two = score.held_out_captions(False, 20), score.held_out_captions(True, 20)
    assert all(scenes.parse(c)[0] == "single" for c in one)
    assert all(scenes.parse(c)[0] != "single" and scenes.split_of(c) == "test" for c in two)


def test_words_keep_the_numbers_the_shipped_text_encoder_learnt():
    shipped = CLIPTokenizer.from_pretrained(score.FOLDER / "tokenizer")
    made = new_tokenizer()
    assert made.get_vocab() == shipped.get_vocab()
    assert [made(w).input_ids[1] for w in ("of", "on", "zero")] == [541, 542, 582]
