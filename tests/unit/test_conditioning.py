"""What recorded captions take of the disk: as many as the data has, as many numbers each as the pipeline's text encoders make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from compress.artifact import Artifact, Component
from compress.catalogue import find_stage
from compress.distillation.conditioning import caption_values
from compress.errors import RecipeError
from compress.planning.plan import make_plan
from compress.recipe.values import Recipe
from compress.store.cache import Cache
from tests.fakes import pipeline, recipe, step

CLIP = {"hidden_size": 768, "max_position_embeddings": 77}
WIDE_CLIP = {"hidden_size": 1280, "max_position_embeddings": 77}
T5 = {"d_model": 4096}
ENDLESS = 10**30  # as tokenizers say it that know no limit
KINDS = {"d_model": "T5EncoderModel", "max_position_embeddings": "CLIPTextModel"}


def reported(
    folder: Path, kind: str, denoiser: Mapping[str, Any], *encoders: tuple[Mapping[str, Any], int], **call: Any
) -> int:
    """What a pipeline of this class tells its denoiser, with encoders and the lengths of their tokenizers."""
    parts = {"transformer": Component("torch", "transformer", "")}
    configs = {"transformer": denoiser}
    for number, (config, length) in enumerate(encoders, 1):
        end = f"_{number}" if number > 1 else ""
        parts[f"text_encoder{end}"] = Component("torch", f"text_encoder{end}", KINDS.get([*config][-1], "Gemma2Model"))
        configs[f"text_encoder{end}"] = config
        (folder / f"tokenizer{end}").mkdir(parents=True)
        (folder / f"tokenizer{end}/tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return caption_values(Artifact(folder, "text_to_image", parts, planned=configs).calling(**call))


@pytest.mark.parametrize(
    ("kind", "denoiser", "encoders", "wanted"),
    [
        ("StableDiffusionPipeline", {"cross_attention_dim": 768}, [(CLIP, 77)], 77 * 768),
        (
            "StableDiffusionXLPipeline",
            {"cross_attention_dim": 2048},
            [(CLIP, 77), (WIDE_CLIP, 77)],
            77 * 2048,
        ),
        ("PixArtAlphaPipeline", {"cross_attention_dim": 1152, "caption_channels": 4096}, [(T5, 512)], 120 * 4096),
        ("PixArtSigmaPipeline", {"cross_attention_dim": 1152, "caption_channels": 4096}, [(T5, 512)], 300 * 4096),
        (
            "StableDiffusion3Pipeline",
            {"joint_attention_dim": 4096},
            [(CLIP, 77), (WIDE_CLIP, 77), (T5, 512)],
            (77 + 77 + 256) * 4096,
        ),
        ("AuraFlowPipeline", {"joint_attention_dim": 32}, [({"d_model": 32}, 32)], 256 * 32),
        ("Lumina2Pipeline", {"cap_feat_dim": 32}, [({"max_position_embeddings": 8192, "hidden_size": 32}, 256)], 256 * 32),
        ("Lumina2Pipeline", {"cap_feat_dim": 32}, [({"text_config": {"hidden_size": 16}}, ENDLESS)], 256 * 16),
    ],
)  # fmt: skip
def test_a_caption_is_as_long_and_as_wide_as_its_encoders_make_it(
    kind: str, denoiser: Mapping[str, Any], encoders: list[tuple[Mapping[str, Any], int]], wanted: int, tmp_path: Path
) -> None:
    assert reported(tmp_path, kind, denoiser, *encoders) == wanted


def test_a_call_says_how_much_of_a_caption_is_read(tmp_path: Path) -> None:
    assert reported(tmp_path, "PixArtSigmaPipeline", {}, (T5, 512), max_sequence_length=64) == 64 * 4096


def test_a_class_that_nobody_knows_is_taken_as_a_large_one(tmp_path: Path) -> None:
    assert reported(tmp_path / "none", "MyPipeline", {"cross_attention_dim": [320, 640]}) == 512 * 640
    assert reported(tmp_path / "one", "MyPipeline", {}, ({"d_model": 1024}, ENDLESS)) == 512 * 1024


def captioned(folder: Path, count: int) -> Path:
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    rows = ({"file_name": "0.png", "text": f"number {i}"} for i in range(count))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def with_a_schedule(folder: Path) -> Path:
    model = pipeline(folder)
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    (model / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler | {"prediction_type": "epsilon"}))
    return model


@pytest.fixture
def asked(tmp_path: Path) -> Any:
    def of(name: str, train: str, **params: Any) -> Recipe:
        return recipe(with_a_schedule(tmp_path / "model"), step(find_stage(name), **params), data={"train": train})

    return of


STEPS = {"steps": 2, "guidance": 3.0}


def test_no_more_captions_are_counted_than_the_data_has(asked: Any, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    few, endless = str(captioned(tmp_path / "few", 24)), "zoo://digits/train"
    by_default, as_many = (
        make_plan(asked("distill.steps", few, **STEPS, **more), cache) for more in ({}, {"captions": 24})
    )
    assert by_default.disk_bytes == as_many.disk_bytes
    fewer = make_plan(asked("distill.steps", few, **STEPS, captions=12), cache)
    assert by_default.nodes[0].items_bytes["captions"] == 2 * fewer.nodes[0].items_bytes["captions"]
    whole = make_plan(asked("distill.steps", endless, **STEPS, captions=48), cache)
    assert whole.nodes[0].items_bytes["captions"] == 2 * by_default.nodes[0].items_bytes["captions"]


def test_what_lacks_disk_names_the_stage_and_its_largest_setting(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=10**6))
    with pytest.raises(RecipeError) as caught:
        make_plan(asked("distill.steps", "zoo://digits/train", **STEPS), Cache(tmp_path / "cache"))
    (problem,) = caught.value.problems
    assert "of it for distill.steps, and 1 MB are free" in problem.message
    assert "give distill.steps fewer captions" in problem.fix
