"""Everything that opens a model leaves nothing behind on the host, and does elsewhere what it does there, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.data import Item
from compress.describing import describe
from compress.devices import AS_STORED, Opening
from compress.events import silent
from compress.graphs import ANY_SIZE
from compress.hashing import digest_files
from compress.opening import ImageModel, LanguageModel, OpenModel, open_images, open_language, open_task
from compress.opening.tensors import moved, to_host
from compress.recipe import EvalSpec
from compress.zoo import zoo_model
from compress.zoo.reader import load_reader
from evaluation import arithmetic
from evaluation.collect import CONTINUATIONS, Viewpoint, collect
from evaluation.evidence import Evidence
from evaluation.features.clip import open_clip
from evaluation.features.resizing import resize
from evaluation.metrics.kl import divergences
from tests.devices import AWAY, ROOT, WrongDevice, elsewhere
from tests.stages import CAPTIONS, apply
from tests.tiny import tiny_diffusion, tiny_llama

THERE = Opening(device=AWAY)
ITEMS = tuple(Item(str(i), text) for i, text in enumerate(CAPTIONS))
FEW = {"num_inference_steps": 2}
LITTLE = {"steps": 2, "warmup": 1, "precision": "float32", "ema": 0.5}
TAUGHT = {**LITTLE, "tokens": 8, "batch": 2, "data_weight": 0.5}
RECORDED = {**LITTLE, "prompts": 8, "denoising_steps": 2, "accumulate": 2, "guidance": 2.0}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return replace(describe(tiny_diffusion(tmp_path_factory.mktemp("pipeline"))), digest="pipeline").calling(**FEW)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return replace(describe(tiny_llama(tmp_path_factory.mktemp("llama"))), digest="llama")


# ---------------------------------------------------------------- the law


def in_our_file(source: str, **known: Any) -> Any:
    """Evaluate an expression as if it stood in one of our own files."""
    return eval(compile(source, str(ROOT / "compress" / "planted.py"), "eval"), {"torch": torch, **known})


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("torch.zeros(3)", "torch.zeros makes a tensor without a device"),
        ("torch.tensor([1.0])", "torch.tensor makes a tensor without a device"),
        ("torch.arange(3)", "torch.arange makes a tensor without a device"),
        ("torch.nn.Linear(2, 2)", "torch.empty makes a tensor without a device"),
        ("torch.Generator()", "torch.Generator is made without a device"),
        ("there.cpu()", "moved to the host, and not by to_host"),
        ("there.to('cpu')", "moved to the host, and not by to_host"),
        ("there.to(here)", "moved to the host, and not by to_host"),
        ("layer.to('cpu')", "moved to the host, and not by to_host"),
        ("there.numpy()", "is read as an array"),
        ("there.numpy(force=True)", "is read as an array"),
        ("there + here", "add is given tensors of both sides"),
        ("torch.cat([there, here])", "cat is given tensors of both sides"),
        ("layer(here)", "is given tensors of both sides"),
    ],
)
def test_what_breaks_the_law_fails_and_names_its_line(source: str, told: str) -> None:
    with elsewhere():
        there, here = torch.ones(2, 2, device=AWAY), torch.ones(2, 2, device="cpu")
        layer = torch.nn.Linear(2, 2).to(AWAY)
        with pytest.raises(WrongDevice, match=f"{told}.*planted.py:1|{told}.*test_devices"):
            in_our_file(source, there=there, here=here, layer=layer)


@pytest.mark.parametrize(
    "source",
    [
        "torch.zeros(3, device='cpu')",
        "torch.zeros_like(there) + there",
        "there.new_zeros(2, 2) + there",
        "torch.ones(2, 2, device=there.device) + there",
        "here.to(there.device) + there",
        "moved({'a': [here]}, there.device)['a'][0] + there",
        "layer(there).sum().backward()",
        "there[torch.tensor([0], device='cpu')] + there",
        "there * torch.tensor(2.0, device='cpu')",
        "to_host(there).numpy()",
        "to_host(there[0]) + here",
        "to_host(there, torch.float64).numpy()",
        "there.sum().item()",
        "torch.Generator('cpu')",
    ],
)
def test_what_keeps_it_passes(source: str) -> None:
    with elsewhere():
        there, here = torch.ones(2, 2, device=AWAY), torch.ones(2, 2, device="cpu")
        layer = torch.nn.Linear(2, 2).to(AWAY)
        in_our_file(source, there=there, here=here, layer=layer, to_host=to_host, moved=moved)
        assert there.device == torch.device(AWAY) == layer.weight.device
        assert here.device == torch.device("cpu")


def test_what_lies_there_stays_there_through_views_and_changes_in_place() -> None:
    with elsewhere() as storages:
        there = torch.ones(4, device=AWAY)
        there[:2].add_(1)
        assert storages.has(there.view(2, 2)[0])
        assert storages.has(there * 2)
        assert not storages.has(to_host(there))
        assert storages.has(there)


# ---------------------------------------------------------------- opened models


def both(work: Callable[[Opening], Any]) -> tuple[Any, Any]:
    """What a piece of work gives on the host, and elsewhere."""
    here = work(AS_STORED)
    with elsewhere():
        return here, work(THERE)


def test_pictures_are_the_same(pipeline: Artifact) -> None:
    def work(opening: Opening) -> Any:
        model: ImageModel = open_images(pipeline, opening)
        assert next(model.component("unet").parameters()).device == torch.device(opening.device)
        return (*model.pictures(ITEMS, 0), model.probe(ANY_SIZE))

    for ours, theirs in zip(*both(work), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_texts_and_their_probabilities_are_the_same(llama: Artifact) -> None:
    def work(opening: Opening) -> Any:
        model: LanguageModel = open_language(llama, opening)
        prompts = [model.encode(text) for text in CAPTIONS]
        logits = to_host(model.logits(prompts)).float().numpy()
        written = model.generate(prompts, 4), model.complete(prompts[0], 4)
        return written, (logits, *model.token_logprobs(CAPTIONS, 2), model.probe(ANY_SIZE))

    (here, numbers), (there, same) = both(work)
    assert here == there
    for ours, theirs in zip(numbers, same, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["pipeline", "llama"])
def test_calls_lie_where_the_model_is_opened_and_it_is_timed_there(name: str, request: pytest.FixtureRequest) -> None:
    artifact = request.getfixturevalue(name)
    spec = EvalSpec(timing_batch=2, **({} if name == "pipeline" else {"prompt_tokens": 4, "new_tokens": 3}))
    with elsewhere() as storages:
        model: OpenModel = open_task(artifact, THERE)
        calls = list(model.calls_of(artifact.working, ITEMS, 0, **model.brief))
        tensors = [t for _, call in calls for t in call.values() if torch.is_tensor(t) and t.ndim]
        assert tensors
        assert all(storages.has(t) for t in tensors)
        module = model.component(artifact.main)
        call = next(call for found, call in calls if found == artifact.main)
        module(**call)
        model.first_call()
        assert all(seconds >= 0 for seconds in model.timed(ITEMS, spec, {}).run())


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("name", "stage", "params"),
    [
        *(
            (name, "prune.width", {"ratio": 0.5, "importance": importance, **more})
            for name in ("pipeline", "llama")
            for importance, more in (("magnitude", {}), ("taylor", {"samples": 2}), ("activation", {"samples": 2}))
        ),
        ("llama", "prune.width", {"ratio": 0.5, "parts": ("hidden",)}),
        ("pipeline", "prune.depth", {"ratio": 0.5, "samples": 2}),
        ("llama", "prune.depth", {"ratio": 0.5, "samples": 2}),
        ("pipeline", "accelerate.steps", {"steps": 3, "scheduler": "dpm-solver++"}),
    ],
)
def test_a_stage_leaves_the_same_files(
    name: str, stage: str, params: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact = request.getfixturevalue(name)
    assert_same_files(tmp_path, lambda out, opening: apply(stage, artifact, out, opening=opening, **params))


@pytest.mark.parametrize(
    ("name", "cut", "stage", "params"),
    [
        ("pipeline", "prune.width", "distill.features", RECORDED),
        ("pipeline", "prune.depth", "distill.features", RECORDED),
        ("llama", "prune.width", "distill.logits", TAUGHT),
        ("llama", "prune.depth", "distill.logits", TAUGHT),
    ],
)
def test_teacher_student_calls_and_projections_all_go_where_the_student_learns(
    name: str, cut: str, stage: str, params: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(name)
    narrower = {"parts": ("hidden", "ffn")} if (name, cut) == ("llama", "prune.width") else {}
    student, _ = apply(cut, source, tmp_path / "cut", ratio=0.5, **narrower)
    teacher = {"teacher": source}
    assert_same_files(
        tmp_path, lambda out, opening: apply(stage, student, out, opening=opening, inputs=teacher, **params)
    )


def assert_same_files(folder: Path, work: Callable[[Path, Opening], Any]) -> None:
    here, there = folder / "here", folder / "there"
    work(here, AS_STORED)
    with elsewhere():
        work(there, THERE)
    assert digest_files(here) == digest_files(there)


# ---------------------------------------------------------------- evaluation


def view(artifact: Artifact, opening: Opening, **evidence: tuple[int, ...]) -> Viewpoint:
    return Viewpoint(artifact, opening, dict(artifact.settings.call), ITEMS, "words", 0, 2, evidence)


def test_evidence_is_collected_there_and_is_the_same(pipeline: Artifact, llama: Artifact, tmp_path: Path) -> None:
    def work(opening: Opening) -> tuple[Evidence, Evidence]:
        folders = (tmp_path / opening.device / "evidence",)
        painted = collect(view(pipeline, opening, pictures=()), folders, "baseline", silent)
        read = collect(view(llama, opening, documents=(), **{CONTINUATIONS: (2, 4, 4)}), folders, "baseline", silent)
        return painted, read

    (painted, read), (painted_there, read_there) = both(work)
    assert painted.key != painted_there.key
    np.testing.assert_array_equal(painted.pictures(0, len(ITEMS)), painted_there.pictures(0, len(ITEMS)))
    assert read.continuations == read_there.continuations
    for ours, theirs in zip(read.token_logprobs, read_there.token_logprobs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_divergences_and_operations_are_the_same(pipeline: Artifact, llama: Artifact) -> None:
    def work(opening: Opening) -> Any:
        models = [open_language(llama, opening.of(dtype)) for dtype in ("float32", "bfloat16")]
        return divergences(*models, CAPTIONS), arithmetic.count_picture(pipeline, opening, FEW)

    (nats, operations), (nats_there, operations_there) = both(work)
    np.testing.assert_array_equal(nats, nats_there)
    assert operations == operations_there


def test_features_say_that_they_are_taken_on_the_host() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    found = open_clip(str(zoo_model("digits-clip"))).pictures([pictures])
    with elsewhere():
        np.testing.assert_array_equal(open_clip(str(zoo_model("digits-clip"))).pictures([pictures]), found)
        for mode in ("mlperf", "tf1"):
            resize(pictures, 32, mode)
        load_reader.__wrapped__().read(pictures)


# ---------------------------------------------------------------- engines of the processor


@pytest.mark.parametrize(
    ("name", "stage", "params"),
    [
        ("pipeline", "build.openvino", {}),
        ("pipeline", "build.openvino", {"precision": "int8", "components": ("unet",), "samples": 2}),
        ("llama", "build.openvino", {"precision": "int8_weights"}),
        ("pipeline", "build.onnxruntime", {"components": ("vae",)}),
        ("llama", "build.onnxruntime", {}),
        ("llama", "build.gguf", {}),
        ("llama", "export.onnx", {}),
    ],
)
def test_engines_are_built_and_used_where_they_run(
    name: str, stage: str, params: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact = request.getfixturevalue(name)
    with elsewhere():
        made, _ = apply(stage, artifact, tmp_path / "out", **params)
        if stage != "export.onnx" and not find_stage(stage).idle_here(find_stage(stage).params(**params)):
            assert np.isfinite(open_task(made).probe(ANY_SIZE)).all()
            open_task(made).first_call()


@pytest.mark.parametrize(
    ("name", "params"),
    [("pipeline", {}), ("pipeline", {"precision": "int8", "components": ("unet",), "samples": 2}), ("llama", {})],
)
def test_an_engine_is_held_against_torch_wherever_that_runs(
    name: str, params: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As TensorRT's are, which are built of a model on the GPU, through ONNX too."""
    artifact = request.getfixturevalue(name)
    with elsewhere():
        apply("build.onnxruntime", artifact, tmp_path / "out", opening=THERE, **params)


def test_the_fastest_is_sought_where_it_runs(llama: Artifact, tmp_path: Path) -> None:
    few = {"engines": ("openvino",), "precisions": ("float32",), "blocks": 4, "new_tokens": 4, "prompt_tokens": 4}
    with elsewhere():
        apply("build.fastest", llama, tmp_path / "out", **few)
