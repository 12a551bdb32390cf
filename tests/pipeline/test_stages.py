"""The first stages through real tiny models: what they leave must load, agree with torch, and be equal from run to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.artifact import Artifact
from compress.catalogue import find_engine, find_stage
from compress.errors import Refusal, StageFailed
from compress.files.hashing import digest_file
from compress.model.describing import describe
from compress.model.exportable import wanted
from compress.opening import open_task
from tests.stages import CAPTIONS, apply
from tests.tiny import tiny_diffusion, tiny_llama


def digests(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): digest_file(f) for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(scope="module")
def built(pipeline: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply("build.openvino", pipeline, tmp_path_factory.mktemp("built") / "out")[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def built_llama(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply("build.openvino", llama, tmp_path_factory.mktemp("built") / "out")[0]


def test_steps_change_the_call_and_the_scheduler_but_not_the_input(pipeline: Artifact, tmp_path: Path) -> None:
    before = digests(pipeline.path)
    made, _ = apply(
        "accelerate.steps", pipeline, tmp_path / "out", steps=4, scheduler="dpm-solver++", spacing="trailing"
    )
    assert digests(pipeline.path) == before  # its files are hard-linked into the output
    config = json.loads((made.path / "scheduler/scheduler_config.json").read_text())
    assert config["_class_name"] == "DPMSolverMultistepScheduler"
    assert config["prediction_type"] == "v_prediction"  # the training's own settings are carried over
    assert config["timestep_spacing"] == "trailing"
    assert made.settings.call["num_inference_steps"] == 4
    task: Any = open_task(made)
    assert type(task.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert task.generate(["a red three"], ["0"], 0).shape == (1, 16, 16, 3)
    assert len(task.pipeline.scheduler.timesteps) == 4


def test_steps_keep_the_scheduler_when_none_is_named(pipeline: Artifact, tmp_path: Path) -> None:
    made, _ = apply("accelerate.steps", pipeline, tmp_path / "out", steps=3)
    assert json.loads((made.path / "scheduler/scheduler_config.json").read_text())["_class_name"] == "DDIMScheduler"


def test_a_built_pipeline_holds_engines_and_no_torch_weights(built: Artifact) -> None:
    assert {c.format for c in built.components.values()} == {"openvino"}
    assert not list(built.path.rglob("*.safetensors"))
    for name in ("unet", "vae", "text_encoder"):
        files = {f.name for f in built.folder(name).iterdir()}
        assert {"config.json", "engine.json", "openvino_model.xml", "openvino_model.bin"} <= files


@pytest.mark.parametrize("count", [1, 3])
def test_a_built_pipeline_generates_what_torch_generates_at_any_batch(
    pipeline: Artifact, built: Artifact, count: int
) -> None:
    prompts, names = list(CAPTIONS[:count]), [str(i) for i in range(count)]
    torch_task: Any = open_task(pipeline)
    engine: Any = open_task(built)
    ours = engine.generate(prompts, names, 0, num_inference_steps=3).astype(int)
    theirs = torch_task.generate(prompts, names, 0, num_inference_steps=3).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert theirs.std() > 5  # a constant image would agree with anything


def test_a_safety_checker_is_no_part_of_what_is_built(pipeline: Artifact, tmp_path: Path) -> None:
    import shutil

    import compress

    model = shutil.copytree(pipeline.path, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "config.json").write_text("{}")
    assert set(wanted(describe(model), "all")) == {"unet", "vae", "text_encoder"}
    made = compress.apply("build.openvino", model, cache=tmp_path / "cache", components=("text_encoder",))
    assert made.components["safety_checker"].format == "torch"


def test_only_the_components_asked_for_are_built(pipeline: Artifact, tmp_path: Path) -> None:
    made, notes = apply("build.openvino", pipeline, tmp_path / "out", components=("text_encoder",))
    assert {n: c.format for n, c in made.components.items()} == {
        "unet": "torch",
        "vae": "torch",
        "text_encoder": "openvino",
    }
    assert [n.facts["component"] for n in notes] == ["text_encoder"]
    assert 0 < float(notes[0].facts["max_difference"]) < 1e-3
    task: Any = open_task(made)
    assert task.generate(["a red three"], ["0"], 0, num_inference_steps=2).std() > 0


def test_a_build_that_differs_from_torch_is_refused(
    pipeline: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(find_engine("openvino").precisions, "float32", 1e-12)  # type: ignore[arg-type]
    with pytest.raises(
        StageFailed, match=r"of `text_encoder` differs from torch by .* first in its layer `.+`; at most 1e-12"
    ):
        apply("build.openvino", pipeline, tmp_path / "out", components=("text_encoder",))


def test_the_xl_pipeline_hears_both_its_texts_and_sizes(tmp_path: Path) -> None:
    model = describe(tiny_diffusion(tmp_path / "xl", xl=True))
    made, _ = apply("build.openvino", model, tmp_path / "out", components=("unet", "text_encoder_2"))
    images = []
    for artifact in (model, made):
        task: Any = open_task(artifact)
        images.append(task.generate(["a red three", "blue"], ["0", "1"], 0, num_inference_steps=2).astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


def test_int8_is_calibrated_on_real_calls_and_repeats_to_the_byte(built: Artifact, tmp_path: Path) -> None:
    few, _ = apply("accelerate.steps", built, tmp_path / "few", steps=4)
    made, notes = apply("quantize.nncf", few, tmp_path / "out", samples=6)
    assert notes[0].facts["calls"] == 8  # whole images: two batches of four steps
    assert int(notes[0].facts["FakeQuantize"]) > 10
    assert made.settings.call["num_inference_steps"] == 4
    sizes = [(a.folder("unet") / "openvino_model.bin").stat().st_size for a in (few, made)]
    assert sizes[1] < 0.5 * sizes[0]
    again, _ = apply("quantize.nncf", few, tmp_path / "again", samples=6)
    assert digests(again.path) == digests(made.path)
    images = []
    for artifact in (few, made):
        task: Any = open_task(artifact)
        images.append(task.generate(["a red three", "blue"], ["0", "1"], 0).astype(int))
    assert 0 < np.abs(images[0] - images[1]).mean() < 10


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_model_stored_in_bfloat16_is_calibrated_too(tmp_path: Path, engine: str) -> None:
    model = describe(tiny_diffusion(tmp_path / "model", dtype=torch.bfloat16))
    few, _ = apply("accelerate.steps", model, tmp_path / "few", steps=4)
    _, notes = apply(f"build.{engine}", few, tmp_path / "out", precision="int8", samples=4, components=("unet",))
    assert 0 < float(notes[0].facts["relative"]) < 0.2


@pytest.mark.parametrize(("mode", "share"), [("int8", 0.5), ("int8_weights", 0.5), ("int4_weights", 0.25)])
def test_a_quantized_language_model_is_smaller_and_close(
    llama: Artifact, built_llama: Artifact, tmp_path: Path, mode: str, share: float
) -> None:
    more: dict[str, Any] = {"samples": 4} if mode == "int8" else {}
    made, notes = apply("quantize.nncf", built_llama, tmp_path / "out", mode=mode, **more)
    sizes = [(a.path / "openvino_model.bin").stat().st_size for a in (built_llama, made)]
    assert sizes[1] < share * sizes[0]
    assert sum(v for v in notes[0].facts.values() if isinstance(v, int)) > 0
    scores = []
    for artifact in (llama, made):
        task: Any = open_task(artifact)
        scores.append(task.token_logprobs(["hello world"], 1)[0])
    assert 0 < np.abs(scores[0] - scores[1]).mean() < 1


def test_what_cannot_work_is_refused_from_the_description_alone(pipeline: Artifact, built: Artifact) -> None:
    quantize, build = find_stage("quantize.nncf"), find_stage("build.openvino")
    refused = quantize.refuse(pipeline, quantize.params())
    assert isinstance(refused, Refusal)
    assert refused.fix == "put build.openvino before it"
    assert "no component transformer" in quantize.refuse(built, quantize.params(components=("transformer",)))
    assert "is an engine already" in build.refuse(built, build.params(components=("unet",)))


def test_only_activations_need_calibration_data() -> None:
    quantize = find_stage("quantize.nncf")
    needed = {mode: quantize.data(quantize.params(mode=mode)) for mode in ("int8", "int8_weights", "int4_weights")}
    assert needed == {"int8": ("calibration",), "int8_weights": (), "int4_weights": ()}
