"""What `compress.load` gives of an artifact with engines: stock objects that call them, from two threads, and let go of memory."""

from __future__ import annotations

import ctypes
import gc
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import GenerationMixin

import compress
from compress.artifact import Artifact
from compress.engines.builder import positions_of
from compress.errors import ModelError, UserError
from compress.machine import gpus
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from compress.zoo import zoo_model
from tests.families import MODELS
from tests.stages import apply
from tests.tiny import tiny_diffusion, tiny_llama

ENGINES = (
    "openvino",
    "onnxruntime",
    pytest.param("compiled", marks=pytest.mark.slow),
)
WARM, CYCLES = 10, 50
GROWTH = 6_000_000  # bytes over all cycles; one tiny engine takes more than a megabyte


@pytest.fixture(scope="module", params=ENGINES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp(f"pipeline-{request.param}")
    components = ("unet", "vae", "text_encoder") if request.param != "compiled" else ("vae",)
    return apply(f"build.{request.param}", describe(tiny_diffusion(folder)), folder / "out", components=components)[0]


@pytest.fixture(scope="module", params=ENGINES)
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp(f"llama-{request.param}")
    return apply(f"build.{request.param}", describe(tiny_llama(folder / "model")), folder / "out")[0]


def generate(pipe: Any, prompt: str, steps: int = 3) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np").images[0]


def write(model: Any, tokens: list[int]) -> list[int]:
    prompt = torch.tensor([tokens])
    found: list[int] = model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()
    return found


def counted(owner: Any, name: str) -> list[int]:
    """How often a method is called from now on, as the only item of a list."""
    calls = [0]
    real = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return real(*args, **kwargs)

    setattr(owner, name, call)
    return calls


def test_a_stock_pipeline_calls_its_engines(pipeline: Artifact) -> None:
    pipe = compress.load(pipeline)
    assert type(pipe) is StableDiffusionPipeline
    engines = [n for n, c in pipeline.components.items() if c.format != "torch"]
    calls = {name: counted(getattr(pipe, name).runner, "run") for name in engines}
    assert generate(pipe, "a red three", steps=3).std() > 0
    expected = {"unet": [3], "vae": [1], "text_encoder": [2]}  # guidance: one batch of two rows; prompt, and no prompt
    assert calls == {name: expected[name] for name in engines}
    assert engines


def test_a_stock_generate_calls_the_engine_for_each_token(llama: Artifact) -> None:
    model = compress.load(llama)
    assert isinstance(model, GenerationMixin)
    calls = counted(model.decoder, "step")
    assert len(write(model, [5, 6, 7])) == 15
    assert calls == [12]


def test_two_threads_generate_what_each_generates_alone(pipeline: Artifact) -> None:
    pipes = [compress.load(pipeline) for _ in range(2)]
    for name, part in pipeline.components.items():
        if part.format != "torch":  # one engine for both; a scheduler belongs to one
            setattr(pipes[1], name, getattr(pipes[0], name))
    prompts = ("a red three", "blue")
    alone = [generate(pipes[0], prompt) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            together = list(pool.map(generate, pipes, prompts))
            assert all(np.abs(a - b).max() < 1e-4 for a, b in zip(alone, together, strict=True))
    assert np.abs(alone[0] - alone[1]).max() > 1e-2


def test_two_threads_write_what_each_writes_alone(llama: Artifact) -> None:
    model = compress.load(llama)
    prompts = [[5, 6, 7], [40, 41]]
    alone = [write(model, prompt) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert list(pool.map(write, [model, model], prompts)) == alone


def resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and is only kept for the next time
    found: int = psutil.Process().memory_info().rss
    return found


def growth(cycle: Callable[[], object]) -> int:
    """Resident memory that fifty cycles leave behind, after the first few have filled what is filled once."""
    for _ in range(WARM):
        cycle()
    before = resident()
    for _ in range(CYCLES):
        cycle()
    return resident() - before


def test_a_pipelines_engine_lets_go_of_its_memory(pipeline: Artifact) -> None:
    from compress.opening import open_component

    call = {"z": torch.randn(1, 4, 8, 8)}

    def cycle() -> None:
        with torch.inference_mode():
            open_component(pipeline, "vae").decode(**call)

    assert growth(cycle) < GROWTH


def test_a_language_models_engine_lets_go_of_its_memory(llama: Artifact) -> None:
    assert growth(lambda: write(compress.load(llama), [5, 6, 7])) < GROWTH


def test_a_path_is_enough_to_load(llama: Artifact) -> None:
    assert write(compress.load(Path(llama.path)), [5, 6]) == write(compress.load(llama), [5, 6])


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpus_here", lambda: (gpus.Gpu("NVIDIA L4", "SM89"),))
    monkeypatch.setattr(gpus, "torch_without_cuda", lambda: "")


def remedy_elsewhere(artifact: Artifact) -> str:
    with pytest.raises(
        UserError, match=r"which runs on cpu, not on `cuda:0`|for processors alone here, not for `cuda:0`"
    ) as caught:
        open_task(artifact, Opening(device="cuda:0"))
    return caught.value.problems[0].fix


# Two tests: one with both models would have each built again for every pair of engines.
@pytest.mark.usefixtures("a_gpu")
def test_a_pipelines_engine_of_the_processor_asked_for_elsewhere_is_one_clear_error(pipeline: Artifact) -> None:
    assert "on cpu" in remedy_elsewhere(pipeline)


@pytest.mark.usefixtures("a_gpu")
def test_a_language_models_engine_of_the_processor_asked_for_elsewhere_is_one_clear_error(llama: Artifact) -> None:
    assert "on cpu" in remedy_elsewhere(llama)


@pytest.mark.parametrize(("device", "why"), [("gpu", "`gpu` is no device"), ("cuda:99", "finds no NVIDIA GPU here")])
def test_a_device_that_is_not_there_is_one_clear_error(device: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        compress.load(zoo_model("docs-llama"), device=device)
    assert "cpu" in caught.value.problems[0].fix


def test_a_device_that_torch_does_not_have_is_one_clear_error() -> None:
    """Where a GPU is there, and torch was built without it."""
    with pytest.raises(UserError, match=r"has no device `cuda:99` here: .+"):
        open_task(describe(zoo_model("docs-llama")), Opening(device="cuda:99"))


def test_what_a_graph_does_not_hold_is_refused_and_never_left_out(pipeline: Artifact) -> None:
    pipe = compress.load(pipeline)
    if pipeline.components["unet"].format == "torch":
        pytest.skip("no engine takes such arguments here")
    call: dict[str, Any] = {"timestep": torch.tensor(999.0), "encoder_hidden_states": torch.randn(2, 16, 32)}
    sample = torch.randn(2, 4, 8, 8)
    plain = pipe.unet(sample, **call).sample
    harmless = {"cross_attention_kwargs": {}, "class_labels": None, "added_cond_kwargs": {"text_embeds": None}}
    assert torch.equal(pipe.unet(sample, **call, **harmless, return_dict=False)[0], plain)
    for more, named in (
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs"),
        ({"down_block_additional_residuals": [sample]}, "down_block_additional_residuals"),
        ({"mid_block_additional_residual": sample}, "mid_block_additional_residual"),
        ({"added_cond_kwargs": {"image_embeds": sample}}, "added_cond_kwargs.image_embeds"),
    ):
        with pytest.raises(UserError, match=f"the engine's graph has no {named}:"):
            pipe.unet(sample, **call, **more)
    with pytest.raises(UserError, match=r"the engine's graph has no output_hidden_states:"):
        pipe("a red three", clip_skip=1, num_inference_steps=1)


def test_a_image_of_another_size_is_refused(pipeline: Artifact) -> None:
    vae = compress.load(pipeline).vae
    assert vae.decode(torch.randn(5, 4, 8, 8)).sample.shape == (5, 3, 16, 16)
    for shape in ((1, 4, 16, 16), (1, 5, 8, 8), (4, 8, 8)):
        with pytest.raises(UserError, match=r"(graph|engine) (takes|refuses)") as caught:
            vae.decode(torch.randn(shape))
        assert "only the batch" in caught.value.problems[0].fix or "profile" in caught.value.problems[0].fix


def test_prompts_of_several_lengths_are_refused_and_texts_of_several_lengths_are_read(llama: Artifact) -> None:
    model, torch_model = compress.load(llama), compress.load(llama.path.parent / "model")
    tokens = torch.tensor([[5, 6, 7], [5, 6, 0]])
    behind, before, holes = (torch.tensor([[1, 1, 1], row]) for row in ([1, 1, 0], [0, 1, 1], [1, 0, 1]))
    ours, theirs = model(tokens, attention_mask=behind).logits, torch_model(tokens, attention_mask=behind).logits
    torch.testing.assert_close(ours[1, :2], theirs[1, :2], atol=1e-4, rtol=1e-4)
    for mask in (before, holes):
        with pytest.raises(UserError, match="no padding before a token"):
            model(tokens, attention_mask=mask)
    for mask in (behind, before, holes):
        with pytest.raises(UserError, match="continues no padded prompts") as caught:
            model.generate(tokens, attention_mask=mask, max_new_tokens=2)
    assert "one length" in caught.value.problems[0].fix


def test_a_language_models_arguments_are_heeded_or_refused(llama: Artifact) -> None:
    model = compress.load(llama)
    tokens = torch.tensor([[5, 6, 7, 8]])
    whole = model(tokens, use_cache=True, return_dict=True, labels=None, output_attentions=False).logits
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, whole[:, -2:])
    for more in ({"labels": tokens}, {"position_ids": tokens}, {"output_hidden_states": True}):
        with pytest.raises(UserError, match=f"the engine takes no {next(iter(more))}"):
            model(tokens, **more)
    words = model.config.vocab_size
    for odd in (words, -1):
        with pytest.raises(UserError, match=f"tokens go from 0 to {words - 1}"):
            model(torch.tensor([[5, odd]]))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_text_beyond_the_learned_positions_is_refused(family: str, tmp_path: Path) -> None:
    source = describe(MODELS[family](tmp_path / "model"))
    made, _ = apply("build.openvino", source, tmp_path / "out")
    model, most = compress.load(made), compress.load(source).config.max_position_embeddings
    assert model(torch.ones(1, most, dtype=torch.long)).logits.shape[1] == most
    with pytest.raises(UserError, match=f"the model has {most} positions, and this text {most + 1} tokens"):
        model.generate(torch.ones(1, most - 2, dtype=torch.long), max_new_tokens=9, min_new_tokens=9)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_positions_that_are_worked_out_have_no_end(family: str, tmp_path: Path) -> None:
    assert positions_of(compress.load(MODELS[family](tmp_path / "model"))) is None


@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_a_broken_file_is_one_clear_error(pipeline: Artifact, tmp_path: Path, how: str) -> None:
    kinds = (".xml", ".bin", ".onnx", ".data", ".pt2")
    files = [f for f in pipeline.folder("vae").iterdir() if f.suffix in kinds]
    assert files
    for file in files:
        folder = shutil.copytree(pipeline.path, tmp_path / file.name)
        broken = folder / "vae" / file.name
        body = broken.read_bytes()
        broken.unlink()
        if how == "cut short":
            broken.write_bytes(body[: len(body) // 2])
        with pytest.raises(ModelError) as caught:
            compress.load(folder).vae.decode(torch.randn(1, 4, 8, 8))
        problem = caught.value.problems[0]
        assert str(folder) in problem.place
        assert "build" in problem.fix
