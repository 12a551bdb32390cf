"""Nothing of ours is left behind on the wrong device: whole paths under a watch that needs no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.algorithms.tensors import moved, to_array, to_host
from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.context import Context
from compress.data.items import Data, Item
from compress.events import silent
from compress.model.describing import describe
from compress.model.exportable import ANY_SIZE
from compress.opening import open_images, open_language, open_task
from compress.recipe.values import EvalSpec
from compress.sources.data import open_data
from evaluation.features.clip import open_clip
from evaluation.metrics.kl import divergences
from evaluation.observe.collect import Viewpoint, collect
from evaluation.observe.operations import count_image, count_text
from tests.devices import DEVICE, HERE, Watched, wrong
from tests.tiny import tiny_diffusion, tiny_llama

TEXTS = ("the array of values", "the axis to sort along, and more", "a red three on white paper")
ITEMS = tuple(Item(str(i), text) for i, text in enumerate(TEXTS))
SPEC = EvalSpec(samples=3, batch=2, prompt_tokens=4, new_tokens=3)
TAUGHT = {"steps": 2, "warmup": 1, "accumulate": 1}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("generator"))).calling(num_inference_steps=2)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("writer")))


@pytest.fixture
def watched() -> Iterator[Watched]:
    with Watched() as mode:
        yield mode
    assert mode.seen, "no line of ours was looked at"


def texts(folder: Path) -> Data:
    (folder / "texts.txt").write_text("\n\n".join(TEXTS * 4))
    return open_data(str(folder / "texts.txt"), Path())


def run(stage: str, artifact: Artifact, folder: Path, **params: Any) -> Artifact:
    """One stage's own work, everything opened on the watched device."""
    captions = open_data("zoo://digits/train", Path()) if not artifact.writes_text else texts(folder)
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    record = find_stage(stage)
    data = dict.fromkeys(("train", "calibration"), captions)
    context = Context(out, scratch, opening=HERE, inputs=dict.fromkeys(record.inputs, artifact), data=data, link=False)
    record.run(artifact, record.params(**params), context)
    return describe(out)


# ---------------------------------------------------------------- the watch itself


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ((torch.zeros, (2,), {}), "torch.zeros without a device"),
        ((torch.tensor, ([1],), {"dtype": torch.float32}), "torch.tensor without a device"),
        ((torch.zeros, (2,), {"device": DEVICE}), ""),
        ((torch.zeros_like, (torch.ones(1),), {}), ""),
        ((torch.Tensor.cpu, (torch.ones(1),), {}), "not through to_host"),
        ((torch.Tensor.numpy, (torch.ones(1),), {}), "not through to_host"),
        ((torch.Tensor.to, (torch.ones(1), "cpu"), {}), "goes to `cpu`, which is spelt here"),
        ((torch.Tensor.to, (torch.ones(1), "cuda"), {}), "goes to `cuda`, which is spelt here"),
        ((torch.Tensor.to, (torch.ones(1), DEVICE), {}), ""),
        ((torch.Tensor.to, (torch.ones(1), torch.ones(1).device), {}), ""),
        ((torch.Tensor.to, (torch.ones(1), torch.bfloat16), {}), ""),
        ((torch.Tensor.float, (torch.ones(1),), {}), ""),
    ],
)
def test_the_watch_tells_what_would_go_wrong(call: tuple[Any, Any, Any], why: str) -> None:
    message = wrong(*call)
    assert (why in message) if why else message == ""


def test_the_watch_names_the_line_and_lets_others_do_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.opening import text_generation

    code = compile("def careless():\n    return torch.zeros(2)\n", text_generation.__file__, "exec")
    space: dict[str, Any] = {"torch": torch}
    exec(code, space)
    with Watched():
        torch.zeros(2)
        with pytest.raises(AssertionError, match=r"compress/opening/text_generation\.py:2: torch\.zeros without"):
            space["careless"]()


def test_the_one_way_back_is_a_copy_out_of_any_gradient(watched: Watched) -> None:
    value = torch.ones(2, requires_grad=True)
    assert not to_host(value * 2).requires_grad
    assert isinstance(to_array(value), np.ndarray)
    nested = moved({"a": [value], "b": (value, 3)}, DEVICE)
    assert nested["a"][0] is value or torch.equal(nested["a"][0], value)
    assert nested["b"][1] == 3
    find_stage("prune.width")  # a line of ours, for the watch to have seen one
    watched.seen += 1


# ---------------------------------------------------------------- opened models


def test_a_pipeline_generates_is_recorded_probed_and_timed(generator: Artifact, watched: Watched) -> None:
    task = open_images(generator, HERE)
    images, latents = task.images(ITEMS[:2], 0)
    assert images.shape[0] == 2
    assert latents is not None
    assert len(list(task.calls_of(("unet", "vae"), ITEMS[:1], 0))) == 3
    assert task.probe(ANY_SIZE).std() > 0
    assert task.timed(ITEMS, SPEC, {}).run()[0] > 0


def test_a_language_model_reads_writes_is_recorded_probed_and_timed(writer: Artifact, watched: Watched) -> None:
    task = open_language(writer, HERE)
    assert all(np.isfinite(found).all() for found in task.token_logprobs(TEXTS, 2))
    assert len(task.complete(task.encode(TEXTS[0])[:3], 2)) <= 2
    assert len(list(task.calls_of(("model",), ITEMS, 0))) == 3
    assert task.probe(ANY_SIZE).std() > 0
    assert task.timed(ITEMS, SPEC, {}).run()[1] > 0


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation"])
@pytest.mark.parametrize("words", [True, False])
def test_a_cut_in_width(
    generator: Artifact, writer: Artifact, tmp_path: Path, watched: Watched, words: bool, importance: str
) -> None:
    artifact = writer if words else generator
    made = run("prune.width", artifact, tmp_path, ratio=0.5, importance=importance, samples=2)
    assert made.config(made.main) != artifact.config(artifact.main)


@pytest.mark.parametrize("words", [True, False])
def test_a_cut_in_depth(generator: Artifact, writer: Artifact, tmp_path: Path, watched: Watched, words: bool) -> None:
    artifact = writer if words else generator
    made = run("prune.depth", artifact, tmp_path, ratio=0.5, samples=2)
    assert made.config(made.main) != artifact.config(artifact.main)


def test_a_denoiser_is_taught_beside_its_teacher(generator: Artifact, tmp_path: Path, watched: Watched) -> None:
    made = run("distill.features", generator, tmp_path, prompts=8, denoising_steps=2, **TAUGHT)
    assert made.components["unet"].format == "torch"


@pytest.mark.parametrize(("stage", "how"), [("steps", {"steps": 2}), ("guidance", {"guidance": 2.0})])
def test_a_denoiser_is_taught_by_trajectories(
    generator: Artifact, tmp_path: Path, watched: Watched, stage: str, how: dict[str, Any]
) -> None:
    made = run(f"distill.{stage}", generator, tmp_path, updates=2, warmup=1, captions=4, batch=2, **how)
    assert made.components["unet"].format == "torch"


@pytest.mark.parametrize("sizes", [{"width": 8, "encoder_width": 8}, {"kind": "own"}])
def test_a_decoder_is_taught_beside_its_teacher(
    generator: Artifact, tmp_path: Path, watched: Watched, sizes: dict[str, Any]
) -> None:
    made = run("distill.decoder", generator, tmp_path, prompts=4, pictures=4, feature_weight=0.5, **sizes, **TAUGHT)
    assert made.components["vae"].format == "torch"


def test_a_language_model_is_taught_beside_its_teacher(writer: Artifact, tmp_path: Path, watched: Watched) -> None:
    made = run("distill.logits", writer, tmp_path, tokens=8, batch=2, **TAUGHT)
    assert made.components["model"].format == "torch"


@pytest.mark.parametrize("words", [True, False])
def test_engines_are_built_and_held_against_torch(
    generator: Artifact, writer: Artifact, tmp_path: Path, watched: Watched, words: bool
) -> None:
    made = run("build.openvino", writer if words else generator, tmp_path)
    assert {part.format for part in made.components.values()} == {"openvino"}


# ---------------------------------------------------------------- evidence and metrics


@pytest.mark.parametrize("words", [True, False])
def test_evidence(generator: Artifact, writer: Artifact, tmp_path: Path, watched: Watched, words: bool) -> None:
    kinds: dict[str, tuple[int, ...]] = {"documents": (), "continuations": (2, 4, 3)} if words else {"images": ()}
    view = Viewpoint(writer if words else generator, HERE, {}, ITEMS, "items", 0, 2, kinds)
    found = collect(view, (tmp_path,), "baseline", silent)
    assert len(found.token_logprobs if words else found.images(0, 3)) == 3


def test_what_metrics_compute_on_models(generator: Artifact, writer: Artifact, watched: Watched) -> None:
    one, other = (open_language(writer, HERE) for _ in range(2))
    assert np.abs(divergences(one, other, TEXTS)[:, 0]).max() < 1e-3
    assert sum(count_image(generator, HERE, {"num_inference_steps": 1}).values()) > 0
    assert count_text(writer, 4, 3) > 0


def test_features(watched: Watched) -> None:
    clip = open_clip("zoo://digits-clip")
    images = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3)).astype(np.uint8)
    assert clip.images([images]).shape[0] == len(clip.captions(TEXTS[:2])) == 2


def test_a_training_leaves_its_student_where_its_teacher_is(writer: Artifact, tmp_path: Path) -> None:
    """Whatever accelerate would choose: the device is the opening's."""
    from compress.params import Training
    from compress.training.loop import train

    module = torch.nn.Linear(2, 2)
    where: list[torch.device] = []

    def loss(batch: int) -> dict[str, torch.Tensor]:
        where.append(module.weight.device)
        return {"loss": module(torch.ones(1, 2)).pow(2).sum()}

    train(module, loss, Training(steps=1, warmup=0), folder=tmp_path, seed=0, device=DEVICE)
    assert {device.type for device in where} == {"cpu"}
    assert open_task(writer, HERE).opening == HERE
