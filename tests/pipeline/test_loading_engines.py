"""What `compress.load` gives of an artifact with engines: stock objects that call them, from two threads, and let go of memory."""

from __future__ import annotations

import ctypes
import gc
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
from compress.artifact import Artifact, describe
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


def paint(pipe: Any, prompt: str, steps: int = 3) -> Any:
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
    assert paint(pipe, "a red three", steps=3).std() > 0
    expected = {"unet": [3], "vae": [1], "text_encoder": [2]}  # guidance: one batch of two rows; prompt, and no prompt
    assert calls == {name: expected[name] for name in engines}
    assert engines


def test_a_stock_generate_calls_the_engine_for_each_token(llama: Artifact) -> None:
    model = compress.load(llama)
    assert isinstance(model, GenerationMixin)
    calls = counted(model.decoder, "step")
    assert len(write(model, [5, 6, 7])) == 15
    assert calls == [12]


def test_two_threads_paint_what_each_paints_alone(pipeline: Artifact) -> None:
    pipes = [compress.load(pipeline) for _ in range(2)]
    for name, part in pipeline.components.items():
        if part.format != "torch":  # one engine for both; a scheduler belongs to one
            setattr(pipes[1], name, getattr(pipes[0], name))
    prompts = ("a red three", "blue")
    alone = [paint(pipes[0], prompt) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            together = list(pool.map(paint, pipes, prompts))
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
    from compress.tasks import open_component

    call = {"z": torch.randn(1, 4, 8, 8)}

    def cycle() -> None:
        with torch.inference_mode():
            open_component(pipeline, "vae").decode(**call)

    assert growth(cycle) < GROWTH


def test_a_language_models_engine_lets_go_of_its_memory(llama: Artifact) -> None:
    assert growth(lambda: write(compress.load(llama), [5, 6, 7])) < GROWTH


def test_a_path_is_enough_to_load(llama: Artifact) -> None:
    assert write(compress.load(Path(llama.path)), [5, 6]) == write(compress.load(llama), [5, 6])
