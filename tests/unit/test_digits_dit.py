"""`zoo://digits-dit`: a stock FLUX pipeline on the parts of `zoo://digits-diffusion`, called as its manifest says, and its training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

import compress
from compress.errors import RecipeError
from compress.model.describing import describe
from compress.planning.calls import baseline_call, call_beside
from compress.recipe.values import BaselineSpec
from compress.zoo import MODELS, scenes, zoo_model
from compress.zoo.digit_classifier import marks
from compress.zoo.training import digits_dit, score
from compress.zoo.training.captions import WORDS

DONOR = MODELS / "digits-diffusion"
PAIR = "a red three left of a blue seven on yellow paper"
ALL_WEIGHTS = 42_000_000  # bytes that the whole zoo may take


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained denoiser: this is about the folder, not about the weights."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("digits-dit")
    digits_dit.export(digits_dit.Denoiser(len(digits_dit.word_tokenizer())), out, {"steps": 0})
    return out


@pytest.fixture
def pipeline(folder: Path) -> Any:
    opened = DiffusionPipeline.from_pretrained(folder)
    opened.set_progress_bar_config(disable=True)
    return opened


# ---------------------------------------------------------------- the folder


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_opens_whole_in_the_type_asked_for_without_a_word(
    folder: Path, dtype: torch.dtype | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    opened = DiffusionPipeline.from_pretrained(folder, **({} if dtype is None else {"dtype": dtype}))
    assert type(opened) is FluxPipeline
    assert [r.message for r in caplog.records if "Expected types" in r.message] == []
    modules = [part for part in opened.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 4
    assert {p.dtype for part in modules for p in part.parameters()} == {dtype or torch.float32}


@pytest.mark.parametrize("part", ["vae/diffusion_pytorch_model", "text_encoder/model"])
def test_what_it_shares_with_the_other_generator_is_the_same_file(folder: Path, part: str) -> None:
    for model in (folder, zoo_model("digits-dit")):
        assert (model / f"{part}.safetensors").read_bytes() == (DONOR / f"{part}.safetensors").read_bytes()


def test_its_manifest_says_how_it_is_called(folder: Path) -> None:
    assert describe(folder).settings.call == describe(zoo_model("digits-dit")).settings.call == digits_dit.CALL


def test_every_word_of_the_grammar_is_one_piece_and_no_caption_is_cut() -> None:
    tokenizer = digits_dit.word_tokenizer()
    assert {word for word in WORDS if len(tokenizer(word).input_ids) != 2} == set()  # the word and the end
    assert len(tokenizer(PAIR).input_ids) == len(PAIR.split()) + 1 <= digits_dit.LENGTH
    assert tokenizer.decode(tokenizer(PAIR).input_ids, skip_special_tokens=True) == PAIR
    assert tokenizer.unk_token_id not in tokenizer("a Mauve heptagon!").input_ids


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red three on white paper", {1: ("centre", 3, "red"), 2: ("centre", 3, "red")}),
        (
            PAIR,
            {1: ("left", 3, "red"), 2: ("left", 3, "red"), 6: ("right", 7, "blue"), 7: ("right", 7, "blue")},
        ),
        (
            "a black zero above a black zero on grey paper",
            {1: ("top", 0, "black"), 2: ("top", 0, "black"), 5: ("bottom", 0, "black"), 6: ("bottom", 0, "black")},
        ),
    ],
)
def test_the_text_encoder_is_asked_what_each_word_is_message_of(caption: str, message: dict[int, Any]) -> None:
    inks, answers = list(scenes.INKS), digits_dit.places(caption).tolist()
    expected = [[0, 0, 0]] * digits_dit.LENGTH
    for word, (place, digit, ink) in message.items():
        expected[word] = [scenes.SLOTS.index(place) + 1, digit + 1, inks.index(ink) + 1]
    assert answers == expected


def test_a_text_encoder_that_gives_the_answers_away_has_nothing_left_to_learn() -> None:
    tokens, answers = digits_dit.words([PAIR]), digits_dit.places(PAIR)[None]
    reader = digits_dit.Reader(digits_dit.Denoiser(len(digits_dit.word_tokenizer())).text)
    assert 0.5 < float(reader.loss(tokens, answers).detach()) < 5
    sure = [
        20 * torch.nn.functional.one_hot(a, q.out_features) for a, q in zip(answers[0].T, reader.questions, strict=True)
    ]
    reported = torch.cat(sure, 1).float()
    del reader.text
    reader.text = lambda tokens: SimpleNamespace(last_hidden_state=reported[None])
    at = 0
    for question in reader.questions:
        kept = question.out_features
        question.weight = torch.nn.Parameter(torch.eye(reported.shape[1])[at : at + kept])
        question.bias = torch.nn.Parameter(torch.zeros(kept))
        at += kept
    assert float(reader.loss(tokens, answers)) < 1e-6


# ---------------------------------------------------------------- flow and guidance


class Straight(torch.nn.Module):
    """In the denoiser's place: the velocity that leads from wherever the noise is to one clean latent."""

    def __init__(self, real: Any, clean: torch.Tensor) -> None:
        super().__init__()
        self.config, self.cache_context = real.config, real.cache_context
        self.dtype, self.device = real.dtype, real.device
        self.clean, self.seen = clean, []

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **others: Any) -> tuple[torch.Tensor]:
        self.seen.append((float(timestep[0]), others["encoder_hidden_states"], others["pooled_projections"]))
        return ((hidden_states - self.clean) / timestep[:, None, None],)


def test_the_stock_sampler_follows_the_velocity_that_is_taught(pipeline: Any) -> None:
    clean = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    pipeline.transformer = straight = Straight(pipeline.transformer, clean)
    call = {**digits_dit.CALL, "num_inference_steps": 4, "output_type": "latent"}
    assert torch.allclose(pipeline(PAIR, **call).images, clean, atol=1e-5)
    times = [time for time, _, _ in straight.seen]
    assert times == pytest.approx([1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25])  # with the prompt, and without


def test_the_denoiser_learns_from_what_the_stock_pipeline_gives_it(pipeline: Any) -> None:
    pipeline.transformer = straight = Straight(pipeline.transformer, torch.zeros(1, 16, 16))
    pipeline(PAIR, **{**digits_dit.CALL, "num_inference_steps": 1, "output_type": "latent"})
    for caption, (_, message, pooled) in zip((PAIR, ""), straight.seen, strict=True):
        with torch.no_grad():
            assert torch.allclose(message, pipeline.text_encoder_2(digits_dit.words([caption])).last_hidden_state)
        assert torch.allclose(pooled, digits_dit.pooled([caption]), atol=1e-5)


class Knowing(torch.nn.Module):
    """A denoiser that undoes the noising of one known latent."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **others: Any) -> Any:
        velocity = (hidden_states - self.clean) / timestep[:, None, None]
        return type("Output", (), {"sample": velocity})


def test_the_loss_of_the_true_velocity_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(32, 4, 8, 8).contiguous()
    monkeypatch.setattr(digits_dit, "latents", lambda vae, count: (codes, None))
    batches = digits_dit.Batches(None, 32)  # type: ignore[arg-type]
    model = digits_dit.Denoiser(len(digits_dit.word_tokenizer()))
    torch.manual_seed(0)
    untrained = float(batches.loss(model, 0))
    assert untrained == pytest.approx(float(1 + codes.square().mean()), rel=0.1)  # a denoiser starts at zero
    model.transformer = Knowing(batches.codes[:1])
    assert float(batches.loss(model, 0)) < 1e-6


def test_a_batch_is_a_function_of_its_number_and_most_of_it_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_dit, "latents", lambda vae, count: (torch.zeros(count, 4, 8, 8), None))
    batches = digits_dit.Batches(None, 64)  # type: ignore[arg-type]
    drawn = batches.draw(3)
    assert torch.equal(drawn, batches.draw(3))
    assert not torch.equal(drawn, batches.draw(4))
    two = [scenes.scene("train", int(index)).layout != "single" for index in drawn]
    assert np.mean(two) == pytest.approx(digits_dit.PAIRS, abs=0.01)


# ---------------------------------------------------------------- what is shipped


def test_the_whole_zoo_is_within_its_room() -> None:
    own = [f for f in MODELS.rglob("*") if f.is_file() and not f.is_symlink()]  # what several share takes its room once
    assert sum(f.stat().st_size for f in own) <= ALL_WEIGHTS


def test_it_generates_two_digits_that_are_read_right() -> None:
    pipeline = DiffusionPipeline.from_pretrained(zoo_model("digits-dit"))
    pipeline.set_progress_bar_config(disable=True)
    captions = score.held_out_captions(True, 8)
    images = score.generate(pipeline, captions, call=digits_dit.CALL)
    digits, inks = marks(captions, images)
    assert digits.mean() > 0.8
    assert inks.mean() > 0.8


def plan(tmp_path: Path, *stages: Any) -> Any:
    data = {"train": "zoo://digits/train", "calibration": "zoo://digits/validation", "evaluate": "zoo://digits/test"}
    recipe = {"schema": 1, "name": "x", "model": "zoo://digits-dit", "data": data, "stages": list(stages)}
    recipe["evaluate"] = {"baseline": {"dtype": "float32"}, "samples": 64, "metrics": ["digits_read", "size"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return compress.plan(tmp_path / "recipe.yaml", cache=tmp_path / "cache")


@pytest.mark.parametrize(
    "stages",
    [
        ({"accelerate.steps": {"steps": 8}},),
        ({"prune.depth": {"ratio": 0.25}}, {"distill.features": {}}),
        ({"build.openvino": {}}, {"quantize.nncf": {}}),
        ({"build.onnxruntime": {}},),
    ],
    ids=lambda stages: next(iter(stages[0])),
)
def test_stages_plan_on_it(tmp_path: Path, stages: Any) -> None:
    nodes = plan(tmp_path, *stages).nodes
    assert [node.stage.name for node in nodes] == [next(iter(one)) for one in stages]


def test_what_its_config_cannot_say_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, {"prune.width": {"ratio": 0.25}})
    (problem,) = caught.value.problems
    assert "FluxTransformer2DModel" in problem.message
    assert "prune.depth" in problem.fix + problem.message


def test_a_recipes_guidance_is_the_scale_that_leads_it_on_both_sides(tmp_path: Path) -> None:
    model = describe(zoo_model("digits-dit"))
    call = baseline_call(model, BaselineSpec(guidance=5.0, steps=10))
    assert call == {**digits_dit.CALL, "num_inference_steps": 10, "true_cfg_scale": 5.0}
    assert call_beside(model.calling(num_inference_steps=4), (), model, call) == {**call, "num_inference_steps": 4}
    student = model.calling(num_inference_steps=4, true_cfg_scale=1.0)
    assert call_beside(student, (), model, call)["true_cfg_scale"] == 1.0
    other = describe(zoo_model("digits-diffusion"))
    assert baseline_call(other, BaselineSpec(guidance=5.0)) == {"guidance_scale": 5.0}
