"""The stages on the model families users really have, each on a tiny instance, compared with torch after every stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.context import Context
from compress.errors import ModelError, Refusal, StageFailed
from compress.events import Event
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from tests.fakes import scheduled
from tests.families import CALLS, LAYERS, tiny_image, tiny_text
from tests.stages import CAPTIONS, apply

TEXTS = ["hello world", "abc", "the quick brown fox jumps over the lazy dog", "x" * 500]
PROMPTS = [[5, 6, 7], [10, 11, 12], list(range(20, 45))]  # the last is longer than a sliding window of 8
NAMES = ["0", "1", "2"]


@dataclass(frozen=True)
class Built:
    """A source model, the dtype of its weights, its engines, and what building them reported."""

    source: Artifact
    dtype: torch.dtype
    engine: Artifact
    notes: tuple[Event, ...]


def generate(artifact: Artifact, count: int = 3, **call: Any) -> Any:
    task: Any = open_task(artifact, Opening("float32"))
    return task.generate(CAPTIONS[:count], NAMES[:count], 0, **call).astype(int)


def slow(*values: Any) -> Any:
    return pytest.param(values, marks=pytest.mark.slow, id=values[0])


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("qwen2", torch.bfloat16), id="qwen2-bfloat16"),
        *[pytest.param((name,), id=name) for name in ("gpt2", "opt")],
        *[slow(name) for name in ("qwen3", "mistral", "gemma2", "gemma3", "phi3", "bloom", "qwen3-moe")],
    ],
)
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    name, dtype = (*request.param, torch.float32)[:2]
    source = describe(tiny_text(tmp_path_factory.mktemp(name), name, dtype=dtype))
    engine, notes = apply("build.openvino", source, tmp_path_factory.mktemp("built") / "out")
    return Built(source, dtype, engine, tuple(notes))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("pixart-sigma", torch.bfloat16), id="pixart-sigma-bfloat16"),
        pytest.param(("sd3-no-t5",), id="sd3-no-t5"),
        *[slow(name) for name in ("flux", "sd3", "pixart-alpha", "flux-schnell", "sana")],
    ],
)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    name, dtype = (*request.param, torch.float32)[:2]
    source = describe(tiny_image(tmp_path_factory.mktemp(name), name, dtype=dtype))
    engine, notes = apply("build.openvino", source, tmp_path_factory.mktemp("built") / "out")
    return Built(source, dtype, engine, tuple(notes))


def test_a_language_engine_scores_and_writes_as_torch_does(text: Built) -> None:
    plain, engine = open_task(text.source, Opening("float32")), open_task(text.engine)
    ours, theirs = engine.token_logprobs(TEXTS, 2), plain.token_logprobs(TEXTS, 2)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.concatenate(theirs).std() > 0.3  # a flat model would agree with anything
    answers = plain.generate(PROMPTS, 20)
    assert engine.generate(PROMPTS, 20) == answers
    assert len({token for answer in answers for token in answer}) > 5
    assert 0 < float(text.notes[0].facts["relative"]) < 1e-5


def test_attention_and_cache_are_one_operation(text: Built) -> None:
    """What a small model's token costs is operations: as separate ones, attention and its cache take over twenty a layer."""
    task: Any = open_task(text.engine)
    kinds = [
        op.get_rt_info()["layerType"].astype(str)
        for op in task.model.decoder.graph.compiled.get_runtime_model().get_ops()
    ]
    separate = text.source.components["model"].kind in (
        "Gemma2ForCausalLM",
        "BloomForCausalLM",
    )  # they alter the scores
    assert kinds.count("ScaledDotProductAttention") == (0 if separate else LAYERS)


def test_a_language_engine_in_eight_bits_is_smaller_and_close(text: Built, tmp_path: Path) -> None:
    made, notes = apply("quantize.nncf", text.engine, tmp_path / "out", mode="int8_weights")
    sizes = [(a.path / "openvino_model.bin").stat().st_size for a in (text.engine, made)]
    assert sizes[1] < 1.2 * sizes[0] / text.dtype.itemsize  # a byte for each weight, and the scales
    assert int(notes[0].facts.get("u8", 0)) > 5
    before, after = (np.concatenate(open_task(a).token_logprobs(TEXTS, 2)) for a in (text.engine, made))
    assert 0 < np.abs(before - after).mean() < 0.1
    assert len(open_task(made).generate(PROMPTS[:1], 4)[0]) == 4


def test_an_engine_pipeline_generates_what_torch_generates(image: Built) -> None:
    theirs = generate(image.source, num_inference_steps=3)
    assert np.abs(generate(image.engine, num_inference_steps=3) - theirs).max() <= 1
    assert np.abs(generate(image.engine, 1, num_inference_steps=3) - theirs[:1]).max() <= 1
    assert theirs.std() > 5  # a constant image would agree with anything
    assert np.abs(theirs[0] - theirs[1]).mean() > 5
    assert {n.facts["component"] for n in image.notes} == set(image.source.components)
    assert all(0 < float(n.facts["relative"]) < 1e-5 for n in image.notes)


def test_an_engine_hears_its_prompt(image: Built) -> None:
    task: Any = open_task(image.engine)
    recorded: list[torch.Tensor] = []
    for caption in ("a red three", "zzz"):
        with task.watch("vae", lambda args, kwargs: recorded.append(args[0])):
            task.generate([caption], ["0"], 0, num_inference_steps=3)
    assert float((recorded[0] - recorded[1]).abs().max()) > 1e-4


def test_steps_keep_the_familys_own_scheduler(image: Built, tmp_path: Path) -> None:
    made, _ = apply("accelerate.steps", image.engine, tmp_path / "out", steps=4)
    task: Any = open_task(made)
    config = json.loads((image.source.path / "scheduler/scheduler_config.json").read_text())
    assert type(task.pipeline.scheduler).__name__ == config["_class_name"]
    assert {k: v for k, v in task.pipeline.scheduler.config.items() if k in config} == config
    few = generate(made)
    assert np.abs(few - generate(image.source, num_inference_steps=4)).max() <= 1
    task.generate(CAPTIONS[:1], NAMES[:1], 0)
    assert len(task.pipeline.scheduler.timesteps) == 4


def test_a_denoiser_in_eight_bits_is_smaller_and_close(image: Built, tmp_path: Path) -> None:
    few, _ = apply("accelerate.steps", image.engine, tmp_path / "few", steps=4)
    made, notes = apply("quantize.nncf", few, tmp_path / "out", samples=4)
    assert notes[0].facts["calls"] == 4
    assert int(notes[0].facts["FakeQuantize"]) > 10
    assert int(notes[0].facts["i8"]) > 10
    sizes = [(a.folder("transformer") / "openvino_model.bin").stat().st_size for a in (few, made)]
    assert sizes[1] < 0.7 * sizes[0]
    before, after = generate(few), generate(made)
    assert 0 < np.abs(before - after).mean() < 10
    assert after.std() > 5


@pytest.mark.slow
def test_a_flow_model_may_change_to_the_other_scheduler_that_takes_flows(tmp_path: Path) -> None:
    source = describe(tiny_image(tmp_path / "sana", "sana"))
    made, _ = apply("accelerate.steps", source, tmp_path / "out", steps=4, scheduler="unipc")
    assert generate(made).std() > 5


def model(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pipeline(folder: Path, kind: str, **parts: str) -> Path:
    index: dict[str, Any] = {"_class_name": kind}
    for name, part in parts.items():
        model(folder / name)
        index[name] = ["diffusers", part]
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("kind", "family"),
    [("BertForMaskedLM", "bert"), ("BertModel", "bert"), ("BertLMHeadModel", "bert"), ("XLNetLMHeadModel", "xlnet")],
)
def test_an_encoder_is_no_language_model(tmp_path: Path, kind: str, family: str) -> None:
    with pytest.raises(ModelError) as caught:
        describe(model(tmp_path, architectures=[kind], model_type=family))
    assert f"this is {kind}, which reads a text whole" in caught.value.problems[0].message
    assert "causal language model" in caught.value.problems[0].fix


def test_an_encoder_that_was_made_a_decoder_is_one(tmp_path: Path) -> None:
    found = describe(model(tmp_path, architectures=["BertLMHeadModel"], model_type="bert", is_decoder=True))
    assert found.task == "text_generation"


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("StableDiffusionUpscalePipeline", "UNet2DConditionModel", "unet"),
        ("FluxControlNetPipeline", "FluxTransformer2DModel", "transformer"),
        ("WanPipeline", "WanTransformer3DModel", "transformer"),
        ("AudioLDM2Pipeline", "AudioLDM2UNet2DConditionModel", "unet"),
        ("DDPMPipeline", "UNet2DModel", "unet"),
        ("StableCascadeDecoderPipeline", "StableCascadeUNet", "decoder"),
    ],
)
def test_a_pipeline_that_does_not_generate_from_text_is_refused(
    tmp_path: Path, kind: str, part: str, name: str
) -> None:
    with pytest.raises(ModelError, match=f"images from text alone or changes images, and {kind}"):
        describe(pipeline(tmp_path / "p", kind, **{name: part}))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "set rope_type to default in its config.json"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "rope_type: dynamic"),
        ({"model_type": "mpt"}, "loses its attention bias"),
        ({"model_type": "mamba"}, "takes texts of one length"),
        ({"model_type": "mamba2"}, "takes texts up to one chunk"),
        ({"model_type": "qwen3_next", "linear_key_head_dim": 16}, "gated delta nets"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ""),
    ],
)
def test_what_no_graph_can_do_is_refused_from_the_config(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    build = find_stage("build.openvino")
    message = build.refuse(describe(model(tmp_path, architectures=["LlamaForCausalLM"], **config)), build.params())
    assert (why in message) if why else message == ""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dynamic-rope", "mpt", "mamba", "mamba2"])
def test_what_is_refused_does_fail(tmp_path: Path, family: str) -> None:
    """Where this fails, a library has learned it: take the refusal out of build.openvino."""
    source = describe(tiny_text(tmp_path / "model", family))
    build = find_stage("build.openvino")
    assert build.refuse(source, build.params()) != ""
    with pytest.raises(Exception, match=r"data-dependent|differs from torch|shape|past_key_values"):
        build.run(source, build.params(), Context(tmp_path / "out", tmp_path))


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
SANA = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize(
    ("config", "params", "why"),
    [
        (FLOW, {}, ""),
        (FLOW, {"scheduler": "ddim"}, "leave `scheduler` out"),
        (FLOW, {"spacing": "trailing"}, "leave `spacing` out"),
        (SANA, {"scheduler": "unipc"}, ""),
        (SANA, {"spacing": "trailing"}, "with use_flow_sigmas spaces its steps itself"),
        ({"_class_name": "LCMScheduler"}, {"steps": 100}, "LCMScheduler cannot do 100 steps"),
        ({"_class_name": "SCMScheduler"}, {"spacing": "leading"}, "SCMScheduler spaces its steps itself"),
        ({"_class_name": "LCMScheduler"}, {"spacing": "trailing"}, "LCMScheduler spaces its steps itself"),
        (SANA, {"scheduler": "euler"}, "choose one of `dpm-solver++`, `unipc`"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "sample"}, {"scheduler": "pndm"}, "takes no sample"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, {"scheduler": "pndm"}, ""),
        (
            {"_class_name": "SCMScheduler", "prediction_type": "trigflow"},
            {"scheduler": "unipc"},
            "leave `scheduler` out",
        ),
    ],
)
def test_steps_refuse_what_a_scheduler_cannot_do(
    tmp_path: Path, config: dict[str, Any], params: dict[str, Any], why: str
) -> None:
    stage = find_stage("accelerate.steps")
    found = stage.refuse(scheduled(tmp_path / "m", **config), stage.params(**{"steps": 4, **params}))
    assert bool(found) == bool(why)
    assert not found or (isinstance(found, Refusal) and why in f"{found}: {found.fix}")


def test_a_schedule_that_breaks_off_is_the_schedulers_fault(tmp_path: Path) -> None:
    third = {
        "algorithm_type": "sde-dpmsolver",
        "final_sigmas_type": "sigma_min",
        "solver_order": 3,
    }  # which diffusers lacks
    artifact = scheduled(tmp_path / "m", _class_name="DPMSolverMultistepScheduler", **third)
    with pytest.raises(StageFailed, match="DPMSolverMultistepScheduler cannot do 20 steps"):
        apply("accelerate.steps", artifact, tmp_path / "out", steps=20)


def test_a_schedule_shifted_by_the_images_size_can_be_shortened(tmp_path: Path) -> None:
    artifact = scheduled(tmp_path / "m", **FLOW, use_dynamic_shifting=True)
    stage = find_stage("accelerate.steps")
    (tmp_path / "out").mkdir()
    stage.run(artifact, stage.params(steps=4), Context(tmp_path / "out", tmp_path))
    assert json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())["use_dynamic_shifting"] is True


def test_the_tiny_pipelines_all_have_a_call(tmp_path: Path) -> None:
    from tests.families import IMAGES

    assert IMAGES.keys() == CALLS.keys()
