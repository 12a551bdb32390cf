"""accelerate.compile and accelerate.cuda_graph: what they leave, what they go with, where they do nothing, and that opening applies them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import compress
from compress.artifact import Artifact, Setting
from compress.errors import Problem, RecipeError
from compress.model.describing import describe
from compress.model.hook_settings import COMPILE, GRAPH, hooked, unhookable
from compress.opening import open_images, open_language
from compress.opening.hooks import code_folder, fell_back, ran_inside
from compress.store.cache import Cache
from compress.store.kinds import CODE
from tests.fakes import language_model, pipeline
from tests.graphs import pretended
from tests.stages import apply
from tests.tiny import tiny_diffusion, tiny_llama

Steps = Sequence[dict[str, dict[str, Any]]]
FASTER = (COMPILE, GRAPH)
CUT: dict[str, dict[str, Any]] = {"prune.width": {"ratio": 0.5}}


def problems_of(model: Path, steps: Steps, folder: Path, device: str = "cuda:0") -> tuple[Problem, ...]:
    """What a plan tells, on a machine that is stated to have the device."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({"schema": 1, "name": "x", "model": str(model), "stages": list(steps)}))
    try:
        with mock.patch("compress.planning.plan.settled", return_value=device):
            compress.check(file, cache=folder / "cache")
    except RecipeError as error:
        return error.problems
    return ()


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusion(tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("writer"))


@pytest.mark.parametrize("name", FASTER)
def test_files_stay_as_they_are_and_the_manifest_says_the_rest(name: str, generator: Path, tmp_path: Path) -> None:
    before = describe(generator)
    made, _ = apply(name, before, tmp_path / "out")
    assert made.settings.hook == (Setting(name, "unet"),)
    assert made.settings.needs_pare
    for file in before.folder("unet").iterdir():
        assert (made.folder("unet") / file.name).read_bytes() == file.read_bytes()
    assert f"{name} already" in unhookable(made, name)


def test_on_a_gpu_both_can_be_planned(tmp_path: Path) -> None:
    for model in (language_model(tmp_path / "llama"), pipeline(tmp_path / "generator")):
        assert problems_of(model, [{COMPILE: {}}, {GRAPH: {}}], tmp_path) == ()


def test_graphs_are_refused_where_there_is_no_gpu(tmp_path: Path) -> None:
    (problem,) = problems_of(language_model(tmp_path / "llama"), [{GRAPH: {}}], tmp_path, device="cpu")
    assert problem.message == f"{GRAPH}: a CUDA graph is taken on an NVIDIA GPU, and the device is cpu"
    assert "recipe.yaml" in problem.place
    assert problem.fix == "give another device, or leave this stage out"


def test_compilation_on_a_processor_wants_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = language_model(tmp_path / "llama")
    assert problems_of(llama, [{COMPILE: {}}], tmp_path, device="cpu") == ()
    monkeypatch.setenv("CXX", "no-such-compiler")
    (problem,) = problems_of(llama, [{COMPILE: {}}], tmp_path, device="cpu")
    assert "no C++ compiler `no-such-compiler`" in problem.message
    (problem,) = problems_of(llama, [{COMPILE: {}}], tmp_path, device="mps")
    assert "Apple" in problem.message


@pytest.mark.parametrize("name", FASTER)
def test_what_follows_must_not_change_the_modules(name: str, tmp_path: Path) -> None:
    llama = language_model(tmp_path / "llama")
    (problem,) = problems_of(llama, [{name: {}}, CUT], tmp_path)
    assert f"{name} hooks the modules of `model`, which prune.width changes" in problem.message
    assert problem.fix == f"put {name} behind prune.width"
    (problem,) = problems_of(llama, [{name: {}}, {name: {}}], tmp_path)
    assert f"the model has {name} already" in problem.message


@pytest.mark.parametrize("name", FASTER)
def test_an_engine_has_no_modules(name: str, tmp_path: Path) -> None:
    llama = language_model(tmp_path / "llama")
    found = problems_of(llama, [{name: {}}, {"build.openvino": {}}], tmp_path, device="cpu")
    assert any(f"{name} hooks the modules of `model`, and the engine" in one.message for one in found) or name == GRAPH
    found = problems_of(llama, [{"build.openvino": {}}, {name: {}}], tmp_path, device="cpu")
    assert any(f"{name} takes torch, but `model` is openvino" in one.message for one in found)


def test_weights_whose_calls_ask_for_numbers_are_not_captured(tmp_path: Path) -> None:
    llama = language_model(tmp_path / "llama")
    config = json.loads((llama / "config.json").read_text())
    packed = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (llama / "config.json").write_text(json.dumps({**config, "quantization_config": packed}))
    assert "bitsandbytes in 8 bits" in unhookable(describe(llama), GRAPH)
    assert unhookable(describe(llama), COMPILE) == ""
    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (llama / "config.json").write_text(json.dumps({**config, "quantization_config": packed}))
    assert unhookable(describe(llama), GRAPH) == ""


def meant(folder: Path, *names: str) -> Artifact:
    """A model as stages leave it that is meant to run with these."""
    artifact = describe(folder)
    for name in names:
        artifact = hooked(artifact, name)
    return artifact


def test_a_finished_model_is_checked_for_every_verb(writer: Path, tmp_path: Path) -> None:
    made, _ = apply(GRAPH, describe(writer), tmp_path / "made")
    with pytest.raises(compress.errors.UserError) as caught:
        compress.evaluate(made.path, writer, metrics=["size", "perplexity"], data="zoo://docstrings/test")
    assert f"`model` is meant to run with {GRAPH}" in str(caught.value)


def test_opening_leaves_out_what_does_nothing_here(writer: Path) -> None:
    with pytest.warns(UserWarning, match=f"`model` runs without {GRAPH}: a CUDA graph is taken on an NVIDIA GPU"):
        opened = open_language(meant(writer, GRAPH))
    assert ran_inside(opened) == "`model`: plain calls"


@pytest.fixture
def on_a_gpu() -> Any:
    """The processor counts as a GPU, and the compiler leaves all as it is."""
    torch._dynamo.reset()
    with (
        pretended(),
        mock.patch("compress.model.hook_settings.kind_of", return_value="cuda"),
        mock.patch("compress.opening.compile_and_capture._inductor", lambda graph, examples: graph.forward),
        mock.patch("compress.opening.hooks.keep_code"),
    ):
        yield


@pytest.mark.usefixtures("on_a_gpu")
def test_a_generator_generates_the_same_images(generator: Path) -> None:
    plain, opened = open_images(describe(generator)), open_images(meant(generator, GRAPH, COMPILE))
    items = plain.examples[:2]
    call = {"num_inference_steps": 3, "guidance_scale": 2.0}
    want, _ = plain.images(items, 0, **call)
    for _ in range(2):  # images come with the VAE listened to, and calls of the UNet counted
        found, _ = opened.images(items, 0, **call)
        assert np.abs(found.astype(int) - want.astype(int)).max() <= 1
    assert len(list(opened.calls_of(["unet"], items, 0, **call))) == 3  # listening leaves graphs where they were
    assert "from 1 CUDA graphs, 0 eager" in ran_inside(opened)
    assert "BasicTransformerBlock" in ran_inside(opened)
    assert fell_back(opened) == ""
    with torch.enable_grad(), pytest.warns(UserWarning, match="with gradients"):
        opened.component("unet")(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 16, 32))
    assert fell_back(opened) == "1 calls of `unet` were eager: it was called with gradients"


@pytest.mark.usefixtures("on_a_gpu")
def test_a_writer_writes_the_same_tokens(writer: Path) -> None:
    plain, opened = open_language(describe(writer)), open_language(meant(writer, COMPILE, GRAPH))
    prompts = [plain.encode("The array"), plain.encode("A function of"), plain.encode("The value")]
    assert opened.generate(prompts, 12) == plain.generate(prompts, 12)
    texts = ["The array of values.", "A function."]
    for one, other in zip(opened.token_logprobs(texts, 2), plain.token_logprobs(texts, 2), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert "CUDA graphs, 0 eager" in ran_inside(opened)


def test_code_lies_in_the_cache_of_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "usual"))
    device = torch.device("cpu")
    inside, outside = (
        code_folder(tmp_path / "mine" / "entries" / "key", device),
        code_folder(tmp_path / "saved", device),
    )
    assert inside.parent == tmp_path / "mine" / CODE.folder
    assert outside.parent == tmp_path / "usual" / CODE.folder
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert code_folder(tmp_path / "saved", device) != outside


def test_code_is_kept_and_dropped_as_all_else_is(writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.opening import hooks

    monkeypatch.delenv(hooks.INDUCTOR, raising=False)
    monkeypatch.setenv(hooks.TRITON, "")
    monkeypatch.setattr(hooks, "_held", {})
    cache = Cache(tmp_path)
    cache.prepare()
    hooks.keep_code(tmp_path / "entries" / "key", torch.device("cpu"))
    folder = Path(hooks.os.environ[hooks.INDUCTOR])
    (folder / "code.so").write_bytes(b"0" * 1000)
    assert cache.kinds()[CODE.folder] == (1, 1000)
    assert cache.evict(0) == ()  # this process uses it
    hooks._held.popitem()[1].release()
    assert [one.path for one in cache.evict(0)] == [folder]
    monkeypatch.setenv(hooks.INDUCTOR, "mine")
    hooks.keep_code(tmp_path / "entries" / "key", torch.device("cpu"))
    assert hooks.os.environ[hooks.INDUCTOR] == "mine"  # somebody's own folder stays


@pytest.mark.slow
def test_real_code_on_a_processor(writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    plain = open_language(describe(writer))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        opened = open_language(meant(writer, COMPILE))
    text = ["The array of values."]
    np.testing.assert_allclose(
        opened.token_logprobs(text, 1)[0], plain.token_logprobs(text, 1)[0], rtol=1e-3, atol=1e-4
    )
    assert ran_inside(opened) == "`model`: 2 blocks (LlamaDecoderLayer) on 2 compiled graphs"
    assert any(code_folder(writer, torch.device("cpu")).rglob("*.so"))
