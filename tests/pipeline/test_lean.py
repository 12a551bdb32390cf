"""A lean call generates the very images of the stock pipeline, is taken where it can be, and says where it is not."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import compress
from compress.artifact import Artifact
from compress.data.items import Item
from compress.engines.module import EngineModule
from compress.errors import ManyProblems, UserError
from compress.model.describing import describe
from compress.opening.lean import BEGIN
from compress.opening.lean_texts import Reader
from compress.opening.text_to_image import TextToImage
from compress.pipelines.lean import SCHEDULERS
from compress.recipe.values import EvalSpec
from compress.sources.models import find_source
from tests.families import tiny_image
from tests.stages import apply
from tests.tiny import tiny_clip_tokenizer, tiny_diffusion

MODELS: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_diffusion,
    "sdxl": lambda folder: tiny_diffusion(folder, xl=True),
    "sd3": lambda folder: tiny_image(folder, "sd3"),
    "flux": lambda folder: tiny_image(folder, "flux"),
    "flux-schnell": lambda folder: tiny_image(folder, "flux-schnell"),
    "zoo": lambda folder: find_source("zoo://digits-diffusion", Path(), None).artifact.path,
}
ITEMS = tuple(Item(str(i), text) for i, text in enumerate(("a red three", "a blue seven", "")))
Pair = tuple[TextToImage, TextToImage]
made: dict[str, Artifact] = {}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A model opened with its stock call, and with the lean one."""

    def opened(name: str) -> Pair:
        if name not in made:
            made[name] = describe(MODELS[name](tmp_path_factory.mktemp(name)))
        return TextToImage(made[name]), TextToImage(made[name].calling_lean())

    yield opened
    made.clear()


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "call",
    [
        {"num_inference_steps": 1, "guidance_scale": 1.0},
        {"num_inference_steps": 2, "guidance_scale": 1.0},
        {"num_inference_steps": 3, "guidance_scale": 4.5},
        {"num_inference_steps": 2, "guidance_scale": 3, "negative_prompt": "a green one"},
        {"num_inference_steps": 2, "guidance_scale": 3, "negative_prompt": "a green one " * 30},
    ],
)
def test_images_are_the_same_to_the_bit(
    pair: Callable[[str], Pair], name: str, count: int, call: dict[str, Any]
) -> None:
    stock, lean = pair(name)
    wanted, latents = stock.images(ITEMS[:count], 0, **call)
    for _ in range(2):  # anew, and with what the first call left behind
        found, decoded = lean.images(ITEMS[:count], 0, **call)
        assert lean.pipeline.stock_because == ""
        assert np.array_equal(found, wanted)
        assert decoded is not None
        assert np.array_equal(decoded, latents)
    assert wanted.std() > 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("output", ["pil", "np", "pt", "latent"])
def test_what_is_given_is_given_in_the_same_form(pair: Callable[[str], Pair], name: str, output: str) -> None:
    size: dict[str, Any] = made[name].settings.call if name in made else {}
    given = {"num_inference_steps": 2, "output_type": output, **size}
    found: list[Any] = []
    for model in pair(name):
        as_dict = model.pipeline("a red three", generator=generators(1)[0], **given)
        as_tuple = model.pipeline(["a red three"], generator=generators(1), return_dict=False, **given)
        found.append((as_dict, as_tuple))
    (one, one_tuple), (other, other_tuple) = found
    assert type(one) is type(other)
    assert one.keys() == other.keys()
    assert len(one_tuple) == len(other_tuple)
    for first, second in ((one.images, other.images), (one_tuple[0], other_tuple[0])):
        assert type(first) is type(second)
        if isinstance(first, torch.Tensor):
            assert torch.equal(first, second)
        else:
            assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_half_precision_is_the_same_too(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = tiny_diffusion(tmp_path, dtype=dtype) if name == "sd" else tiny_image(tmp_path, name, dtype=dtype)
    artifact = describe(folder)
    stock, lean = TextToImage(artifact), TextToImage(artifact.calling_lean())
    call = {"num_inference_steps": 2, "guidance_scale": 3.0}
    assert np.array_equal(stock.generate_items(ITEMS[:2], 0, **call), lean.generate_items(ITEMS[:2], 0, **call))
    assert lean.pipeline.stock_because == ""


def test_components_are_called_with_the_same_arguments(pair: Callable[[str], Pair]) -> None:
    """So an engine that was built from stock calls takes lean ones, and the other way round."""
    for name in MODELS:
        stock, lean = pair(name)
        parts = stock.artifact.working
        (one, *more), (other, *others) = (
            list(m.calls_of(parts, ITEMS[:2], 0, num_inference_steps=2, guidance_scale=3.0)) for m in (stock, lean)
        )
        assert len(more) == len(others)
        for (part, given), (named, gets) in zip((one, *more), (other, *others), strict=True):
            assert part == named
            message, says = ({n: v for n, v in c.items() if v is not None and n != "generator"} for c in (given, gets))
            assert message.keys() == says.keys()
            assert all(_same(message[n], says[n]) for n in message)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[n], other[n]) for n in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


@pytest.mark.parametrize(
    ("given", "because"),
    [
        ({"callback_on_step_end": lambda pipe, i, t, held: held}, "callback_on_step_end is given"),
        ({"eta": 0.5}, "eta is given"),
        ({"guidance_rescale": 0.7, "guidance_scale": 3.0}, "guidance_rescale is given"),
        ({"latents": torch.ones(1, 4, 8, 8), "eta": 0.1}, "latents, eta are given"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt is given"),
    ],
)
def test_what_only_the_stock_call_takes_goes_to_it_and_is_message(
    pair: Callable[[str], Pair], given: dict[str, Any], because: str
) -> None:
    stock, lean = (model.pipeline for model in pair("sd"))
    call = {"num_inference_steps": 2, "output_type": "np", **given}
    with pytest.warns(UserWarning, match=f"not the lean one: {because}"):
        found = lean("a red three", generator=generators(1)[0], **call).images
    assert np.array_equal(found, stock("a red three", generator=generators(1)[0], **call).images)
    lean("a red three", num_inference_steps=1, eta=0.0, clip_skip=None)  # as they are by default
    assert lean.stock_because == ""


def test_a_pipeline_that_was_changed_is_called_as_it_is_now(pair: Callable[[str], Pair]) -> None:
    stock, lean = (model.pipeline for model in pair("sd"))

    def both(prompt: str = "a red three") -> str:
        given = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one, other = (p(prompt, generator=generators(1)[0], **given).images for p in (stock, lean))
        assert np.array_equal(one, other)
        return str(lean.stock_because)

    assert both() == ""
    for pipe in (stock, lean):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon")
    assert both() == ""
    with torch.no_grad():
        for pipe in (stock, lean):
            list(pipe.text_encoder.parameters())[-1].add_(0.5)
    assert both() == ""
    for pipe in (stock, lean):
        torch.manual_seed(0)
        pipe.tokenizer.add_tokens(["<it>", "<it>_1"])
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    assert both("a <it>") == ""
    for pipe in (stock, lean):
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert "DPMSolverMultistepScheduler" in both()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("engines")
    return apply(
        "build.openvino", describe(tiny_diffusion(folder)), folder / "out", components=("unet", "vae", "text_encoder")
    )[0]


def test_engines_generate_the_same_and_a_negative_prompt_is_read_once(engines: Artifact) -> None:
    stock, lean = TextToImage(engines), TextToImage(engines.calling_lean())
    assert isinstance(lean.pipeline.text_encoder, EngineModule)
    read: list[Any] = []
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "a green one"}
    with lean.watch("text_encoder", lambda args, kwargs: read.append(args)):
        for items in (ITEMS[:1], ITEMS[1:2], ITEMS[:2], ITEMS[1:]):
            assert np.array_equal(lean.generate_items(items, 0, **call), stock.generate_items(items, 0, **call))
        assert len(read) == 4 + 2  # the prompts, and negative prompts for one and for two images
    lean.pipeline.text_encoder, before = stock.pipeline.text_encoder, len(read)
    with lean.watch("text_encoder", lambda args, kwargs: read.append(args)):
        lean.generate_items(ITEMS[:1], 0, **call)
    assert len(read) == before + 2


def test_a_torch_encoder_may_be_trained_meanwhile_so_nothing_of_it_is_kept(pair: Callable[[str], Pair]) -> None:
    _, lean = pair("sd")
    read: list[Any] = []
    with lean.watch("text_encoder", lambda args, kwargs: read.append(args)):
        for _ in range(2):
            lean.generate_items(ITEMS[:1], 0, num_inference_steps=1, guidance_scale=3.0)
    assert len(read) == 4


def test_the_recipe_asks_for_it_and_the_three_lines_give_it(engines: Artifact, tmp_path: Path) -> None:
    made, _ = apply("accelerate.call", engines, tmp_path / "out")
    assert made.settings.lean
    assert made.settings.needs_pare
    generate = compress.load(made.path)
    assert np.asarray(generate("a red three", num_inference_steps=2).images[0]).std() > 0
    assert generate.stock_because == ""
    assert not hasattr(compress.load(made.path, lean=False), "stock_because")
    assert compress.load(engines, lean=True).lean_memory
    assert not hasattr(compress.load(engines), "stock_because")


def test_what_is_measured_as_lean_is_lean(pair: Callable[[str], Pair]) -> None:
    _, lean = pair("sd")
    assert lean.timed(ITEMS, EvalSpec(), {"num_inference_steps": 2, "guidance_scale": 1.0}).work == 2
    with (
        pytest.warns(UserWarning, match="not the lean one"),
        pytest.raises(UserError, match="the lean call was not taken: eta is given"),
    ):
        lean.timed(ITEMS, EvalSpec(), {"num_inference_steps": 2, "eta": 0.5})


def test_it_is_the_pipeline_it_was(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    stock, lean = (model.pipeline for model in pair("sd"))
    assert isinstance(lean, type(stock))
    assert type(lean).__name__ == type(stock).__name__
    assert lean.components.keys() == stock.components.keys()
    lean.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model_index.json").read_text().count('"StableDiffusionPipeline"') == 1
    assert BEGIN.keys() == SCHEDULERS.keys()
    assert inspect.signature(type(lean).__init__) == inspect.signature(type(stock).__init__)


def test_hooks_and_moved_components_are_left_to_the_stock_call(pair: Callable[[str], Pair]) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    _, lean = pair("sd")
    add_hook_to_module(lean.pipeline.unet.mid_block, ModelHook())
    with pytest.warns(UserWarning, match="hooks hang on a component"):
        lean.pipeline("a red three", num_inference_steps=1)
    _, lean = pair("sd")
    lean.pipeline.lean_memory = replace(lean.pipeline.lean_memory, device=torch.device("meta"))
    with pytest.warns(UserWarning, match="moved to another device"):
        lean.pipeline("a red three", num_inference_steps=1)


def test_captions_are_read_as_the_tokenizer_reads_them(tmp_path: Path) -> None:
    tokenizer: Any = tiny_clip_tokenizer(tmp_path)
    reader, longest = Reader.of(tokenizer), tokenizer.model_max_length
    texts = ["", "a", "A  Red\nthree", "naïve 三", "<|startoftext|>a", "x" * (longest - 2), "!?,."]
    wanted = tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt").input_ids
    found = reader.read(texts)
    assert found is not None
    assert torch.equal(found, wanted)
    assert reader.read(["x" * (longest - 1)]) is None  # the stock pipeline warns of what it cuts
    assert reader.reads_as(tokenizer)
    tokenizer.add_tokens(["<it>"])
    assert not reader.reads_as(tokenizer)
    tokenizer.add_tokens(["<it>_1"])
    assert Reader.of(tokenizer).read(["a"]) is None


def test_a_caption_that_is_too_long_is_cut_as_ever(pair: Callable[[str], Pair]) -> None:
    stock, lean = pair("sd")
    items = (Item("0", "a red three " * 20), Item("1", "a blue seven"))
    call = {"num_inference_steps": 2, "guidance_scale": 3.0}
    assert np.array_equal(stock.generate_items(items, 0, **call), lean.generate_items(items, 0, **call))
    assert lean.pipeline.stock_because == ""


@pytest.mark.parametrize("name", ["pixart-alpha", "llama"])
def test_a_model_without_a_lean_call_says_so_when_it_is_loaded(tmp_path: Path, name: str) -> None:
    from tests.tiny import tiny_llama

    folder = tiny_llama(tmp_path / "llama") if name == "llama" else tiny_image(tmp_path, name)
    with pytest.raises(ManyProblems, match="there is a lean call for FluxPipeline"):
        compress.load(folder, lean=True)
