"""Students through the distillation stages on tiny models: what there is to learn is learnt, and nothing where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.errors import DataError, ModelError
from compress.files.hashing import digest_files, digest_folder
from compress.model.describing import describe
from compress.opening import open_component, open_task
from compress.recipe.python_values import write_yaml
from compress.training.recordings import count_calls
from tests.families import MODELS, tiny_text
from tests.stages import CAPTIONS, apply
from tests.tiny import tiny_diffusion

LITTLE: dict[str, dict[str, Any]] = {
    "distill.features": {"steps": 2, "prompts": 8, "denoising_steps": 2, "accumulate": 1, "precision": "float32"},
    "distill.logits": {"steps": 2, "tokens": 8, "batch": 2, "precision": "float32"},
}


def stage_of(artifact: Artifact) -> str:
    return "distill.features" if artifact.task == "text_to_image" else "distill.logits"


def taught(artifact: Artifact, teacher: Artifact, out: Path, **options: Any) -> tuple[Artifact, dict[str, Any]]:
    name = stage_of(artifact)
    made, notes = apply(name, artifact, out, inputs={"teacher": teacher}, **{**LITTLE[name], **options})
    return made, dict(notes[-1].facts)


def opened(folder: Path, name: str) -> Artifact:
    source = describe(MODELS[name](folder))
    return source.calling(num_inference_steps=2) if source.task == "text_to_image" else source


@pytest.mark.parametrize(
    "name", ["llama", "sd", *[pytest.param(n, marks=pytest.mark.slow) for n in ("pixart-sigma", "sd3", "flux-deep")]]
)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, name: str) -> None:
    source = opened(tmp_path / "model", name)
    before = digest_files(source.path)
    _, facts = taught(source, source, tmp_path / "out", steps=1, weight_decay=0)
    assert facts["loss"][0][1] == pytest.approx(0, abs=1e-6)
    assert digest_files(source.path) == before


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "sd",
        *[
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("sdxl", "sd3", "flux-deep", "sana", "qwen3", "gpt2", "opt", "bert", "gemma2")
        ],
    ],
)
def test_a_shortened_student_comes_nearer_to_its_teacher(tmp_path: Path, name: str) -> None:
    source = opened(tmp_path / "model", name)
    cut, _ = apply("prune.depth", source, tmp_path / "cut", ratio=0.5, samples=2)
    cut = cut.calling(**source.settings.call)
    made, facts = taught(cut, source, tmp_path / "out", steps=30, warmup=2, ema=0.5, learning_rate=2e-3)
    losses = [loss for _, loss in facts["loss"]]
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    weights = [open_component(a, a.main).state_dict() for a in (cut, made)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize(("stage", "recorded"), [("distill.features", "calls"), ("distill.decoder", "images")])
def test_a_flux_that_is_truly_guided_generates_with_the_scale(stage: str, recorded: str, tmp_path: Path) -> None:
    """Its `guidance_scale` would mean nothing to it."""
    source, seen = opened(tmp_path / "model", "flux-schnell"), []
    few = {"denoising_steps": 1, "steps": 1, "precision": "float32"}
    few |= {"prompts": 8} if stage == "distill.features" else {"prompts": 4, "width": 8, "encoder_width": 8}
    for scale in (1.0, 3.0):
        apply(stage, source, tmp_path / f"{scale}", inputs={"teacher": source}, guidance=scale, **few)
        seen.append(digest_folder(tmp_path / f"{scale}-scratch" / recorded))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("name", ["llama", "sd"])
def test_a_model_of_its_own_teaches_from_recipe_to_report(tmp_path: Path, name: str) -> None:
    source = describe(MODELS[name](tmp_path / "model"))
    other = tiny_text(tmp_path / "teacher", "qwen2", seed=1, hidden_size=64) if name == "llama" else None
    teacher = other or tiny_diffusion(tmp_path / "teacher", seed=1)
    (tmp_path / "texts.txt").write_text("\n\n".join(CAPTIONS))
    train = "./texts.txt" if name == "llama" else "zoo://digits/train"
    recipe = {
        "schema": 1,
        "name": "r",
        "model": str(source.path),
        "data": {"train": train},
        "evaluate": {"metrics": ["size"]},
    }
    stage, runs = stage_of(source), []
    for named in ("source", f"./{teacher.relative_to(tmp_path)}"):
        text = write_yaml({**recipe, "stages": [{stage: {**LITTLE[stage], "teacher": named}}]})
        (tmp_path / "r.yaml").write_text(text)
        runs.append(compress.run(tmp_path / "r.yaml", cache=tmp_path / "cache", out=tmp_path / "out"))
    by_source, by_other = runs
    assert by_source.candidate.digest != by_other.candidate.digest
    assert "inputs" not in by_source.candidate.lineage[-1]
    assert by_other.candidate.lineage[-1]["inputs"] == {"teacher": digest_folder(teacher, None)}
    assert by_other.stages[-1]["facts"]["teacher"] == str(teacher)
    assert by_other.stages[-1]["facts"]["loss" if name == "llama" else "unet loss"][0][1] > 0


def test_a_narrow_students_projections_are_thrown_away(tmp_path: Path) -> None:
    source = opened(tmp_path / "model", "llama")
    cut, _ = apply("prune.width", source, tmp_path / "cut", ratio=0.5, parts=("hidden",))
    made, _ = taught(cut, source, tmp_path / "out")
    assert load_file(made.path / "model.safetensors").keys() == load_file(cut.path / "model.safetensors").keys()


def test_what_a_crashed_run_recorded_is_kept(tmp_path: Path) -> None:
    source = opened(tmp_path / "model", "sd")
    taught(source, source, tmp_path / "one", prompts=16)
    calls, again = tmp_path / "one-scratch" / "calls", tmp_path / "two-scratch" / "calls"
    files = sorted(calls.iterdir())
    assert [f.name for f in files] == ["000000.safetensors", "000008.safetensors"]
    assert all(count_calls(f) in (1, 2) for f in files)  # each batch generates with one or two steps
    again.mkdir(parents=True)
    kept = again / files[0].name
    kept.write_bytes(files[0].read_bytes())
    (again / files[1].name).write_bytes(files[1].read_bytes()[:-100])  # cut short
    (again / "000008.partial").write_bytes(b"half")
    time = kept.stat().st_mtime_ns
    taught(source, source, tmp_path / "two", prompts=16)
    assert kept.stat().st_mtime_ns == time
    assert digest_files(again) == digest_files(calls)


def test_the_weights_of_its_parts_add_up(tmp_path: Path) -> None:
    """The first loss is the sum of the divergence, of the hidden states and of the text, each times its weight."""
    source = opened(tmp_path / "model", "llama")
    cut, _ = apply("prune.depth", source, tmp_path / "cut", ratio=0.5, samples=2)
    weights = [(0, 0), (1, 0), (0, 1), (3, 2)]
    first = []
    for number, (hidden, data) in enumerate(weights):
        _, facts = taught(cut, source, tmp_path / str(number), hidden_weight=hidden, data_weight=data, steps=1)
        first.append(facts["loss"][0][1])
    plain, hidden_too, text_too, both = first
    assert 0 < plain < min(hidden_too, text_too)
    assert both - plain == pytest.approx(3 * (hidden_too - plain) + 2 * (text_too - plain), rel=1e-3)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    source = opened(tmp_path / "model", "llama")
    with pytest.raises(DataError, match="tokens do not fill a row of 64"):
        taught(source, source, tmp_path / "out", documents=1, tokens=4096)


def test_a_teacher_that_is_an_engine_is_refused(tmp_path: Path) -> None:
    source = opened(tmp_path / "model", "llama")
    engine = source.replacing({LANGUAGE_MODEL: "openvino"})
    with pytest.raises(ModelError, match="the teacher is an engine"):
        taught(source, engine, tmp_path / "out")


def test_a_teacher_is_left_as_it_was_and_a_nonfinite_student_is_mended(tmp_path: Path) -> None:
    """A student whose last layer was shaken says again more of what its teacher says."""
    source = opened(tmp_path / "model", "llama")
    path = MODELS["llama"](tmp_path / "nonfinite")
    weights = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] + 0.5 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    nonfinite = describe(path)
    made, _ = taught(nonfinite, source, tmp_path / "out", steps=60, warmup=2, ema=0.5, learning_rate=3e-3)
    right, wrong, mended = (np.concatenate(open_task(a).token_logprobs(CAPTIONS, 1)) for a in (source, nonfinite, made))  # type: ignore[union-attr]
    assert np.abs(mended - right).mean() < 0.7 * np.abs(wrong - right).mean()
