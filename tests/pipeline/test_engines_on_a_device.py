"""Engines whose weights lie on a device: ONNX Runtime with values bound where they lie, llama.cpp told where to put its layers. No GPU is
needed: the processor under another spelling is one (tests/devices.py), and of libraries only what is asked of them is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch

from compress.artifact import Artifact, Quantization
from compress.engines.gguf import MODEL
from compress.engines.onnx import GRAPH
from compress.engines.onnx import runtime as onnx_runtime
from compress.engines.onnx.build import on_processor
from compress.engines.onnx.runtime import BoundDecoder, Graph, decoder_of
from compress.errors import ModelError, UserError
from compress.machine import deps
from compress.machine.deps import installed
from compress.model.describing import describe
from compress.opening import open_images, open_language
from compress.opening.computed_by import computed_by
from compress.stages.build import onnxruntime as stage
from evaluation.comparison.compare import _side
from evaluation.observe.collect import Viewpoint
from tests.devices import DEVICE, HERE, Watched
from tests.families import tiny_text
from tests.stages import CAPTIONS, apply
from tests.tiny import tiny_diffusion, tiny_llama

TEXTS = ["hello world", "abc", "the quick brown fox jumps over the lazy dog"]
PROMPTS = [[5, 6, 7], [10, 11, 12], list(range(20, 45))]
GPU = torch.device("cuda", 1)
needs_llama_cpp = pytest.mark.skipif(not installed("llama_cpp"), reason="llama-cpp-python compiles for ten minutes")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def onnx(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply("build.onnxruntime", source, tmp_path_factory.mktemp("onnx") / "out")[0]


@pytest.fixture(scope="module")
def gguf(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply("build.gguf", source, tmp_path_factory.mktemp("gguf") / "out", precision="float32")[0]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("generator")))


@pytest.fixture
def for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's graphs are built as for a GPU, and called as there."""
    monkeypatch.setattr(stage, "kind_of", lambda device: "cuda")
    monkeypatch.setattr(Graph, "run", Graph.bound)


# ---------------------------------------------------------------- ONNX Runtime


def test_bound_values_give_what_arrays_give(onnx: Artifact) -> None:
    graph = Graph(onnx.path, torch.device(DEVICE))
    by_arrays, bound = decoder_of(graph), BoundDecoder(graph)
    pasts = by_arrays.begin(2), bound.begin(2)
    for tokens in (torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[11], [12]]), torch.tensor([[13], [14]])):
        found = [one.step(tokens, past) for one, past in zip((by_arrays, bound), pasts, strict=True)]  # type: ignore[arg-type]
        assert torch.equal(*found)
        for past in pasts:
            past.seen += tokens.shape[1]


def test_what_is_bound_outlives_its_session(onnx: Artifact) -> None:
    graph = Graph(onnx.path, torch.device(DEVICE))
    decoder = BoundDecoder(graph)
    logits = decoder.step(torch.tensor([[5, 6]]), decoder.begin(1))
    kept = logits.clone()
    decoder.step(torch.tensor([[7, 8]]), decoder.begin(1))
    del graph, decoder
    assert torch.equal(logits, kept)


def test_beams_go_on_from_each_others_cache(onnx: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_language(onnx).generate(PROMPTS, 8, num_beams=3)
    opened = open_language(onnx, HERE)
    opened.model.decoder = BoundDecoder(Graph(onnx.path, torch.device(DEVICE)))
    assert opened.generate(PROMPTS, 8, num_beams=3) == expected


@pytest.mark.usefixtures("for_gpus")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_language_model_built_for_gpus_agrees_with_torch(source: Artifact, tmp_path: Path, precision: str) -> None:
    made, notes = apply("build.onnxruntime", source, tmp_path / "out", precision=precision)
    most = {"float32": 1e-5, "float16": 1e-2}[precision]
    assert 0 < float(notes[0].facts["relative"]) < most
    kinds = {port.name: port.dtype for port in onnx_ir.load(made.path / GRAPH).graph.inputs}
    caches = {kind for name, kind in kinds.items() if "past_key_values" in name}
    assert caches == {onnx_ir.DataType.FLOAT16 if precision == "float16" else onnx_ir.DataType.FLOAT}
    theirs, ours = open_language(source, HERE), open_language(made, HERE)
    ours.model.decoder = BoundDecoder(ours.model.decoder.graph)
    for a, b in zip(ours.token_logprobs(TEXTS, 2), theirs.token_logprobs(TEXTS, 2), strict=True):
        np.testing.assert_allclose(a, b, atol=3 * most)
    assert ours.model(torch.tensor([[5, 6]])).logits.dtype is torch.float32
    if precision == "float32":
        assert ours.generate(PROMPTS, 12) == theirs.generate(PROMPTS, 12)


@pytest.mark.usefixtures("for_gpus")
def test_positions_are_as_exact_in_float16_as_torchs(tmp_path: Path) -> None:
    """Angles of some thousand turns have no digits left in float16, and torch works them out in float32."""
    source = describe(tiny_text(tmp_path / "model", "qwen2", max_position_embeddings=4096))
    made, _ = apply("build.onnxruntime", source, tmp_path / "out", precision="float16")
    tokens = torch.randint(0, 200, (1, 3000), generator=torch.Generator().manual_seed(0))
    opened = [open_language(one, how) for one, how in ((source, HERE), (made, HERE), (source, HERE.of("float16")))]
    with torch.no_grad():
        exact, ours, halves = (one.model(tokens).logits[0, -50:].float() for one in opened)
    assert 0 < (ours - exact).norm() < 1.5 * (halves - exact).norm()
    assert (halves - exact).norm() < 0.05 * exact.norm()


@pytest.mark.usefixtures("for_gpus")
def test_a_pipeline_in_float16_makes_nearly_the_same_images(generator: Artifact, tmp_path: Path) -> None:
    made, notes = apply("build.onnxruntime", generator, tmp_path / "out", precision="float16")
    assert {n.facts["component"] for n in notes if "relative" in n.facts} == {"unet", "vae", "text_encoder"}
    assert _size(made, "unet") < 0.6 * _size(generator, "unet")
    before, after = (
        open_images(one, HERE).generate(CAPTIONS[:2], ["0", "1"], 0, num_inference_steps=2).astype(int)  # type: ignore[attr-defined]
        for one in (generator, made)
    )
    assert 0 <= np.abs(before - after).mean() < 2
    assert after.std() > 5


def _size(artifact: Artifact, name: str) -> int:
    kinds = (".safetensors", ".data", ".onnx")
    return sum(file.stat().st_size for file in artifact.folder(name).iterdir() if file.suffix in kinds)


def test_a_module_goes_back_to_its_device_whatever_happens_to_the_export() -> None:
    module, moves = torch.nn.Linear(2, 2).to("meta"), []

    class Moved(torch.nn.Linear):
        def to(self, device: Any) -> Any:  # type: ignore[override]
            moves.append(str(device))
            return self

    module.__class__ = Moved
    with pytest.raises(ValueError, match="the exporter"), on_processor(module):
        raise ValueError("the exporter")
    assert moves == ["cpu", "meta"]


def test_a_provider_that_does_not_load_is_one_clear_error(onnx: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself takes the processor then, and says so on standard error."""
    real, asked = onnx_runtime.onnxruntime.InferenceSession, []

    def session(path: str, options: Any, providers: list[Any], **more: Any) -> Any:
        asked.extend(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnx_runtime.onnxruntime, "InferenceSession", session)
    with pytest.raises(UserError, match="does not load CUDAExecutionProvider here, and the device is cuda:1") as caught:
        Graph(onnx.path, GPU).open()
    assert "cuDNN" in caught.value.problems[0].fix
    assert asked == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}), "CPUExecutionProvider"]


def test_want_of_a_gpus_memory_is_no_fault_of_the_call(onnx: Artifact) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    for home, expected in ((GPU, torch.OutOfMemoryError), (torch.device(DEVICE), UserError)):
        with pytest.raises(expected, match="Failed to allocate memory"), Graph(onnx.path, home)._explained():
            raise states.RuntimeException("Failed to allocate memory for requested buffer of size 8")


def test_a_failure_of_the_gpu_is_no_fault_of_the_sizes(onnx: Artifact) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    graph = Graph(onnx.path, GPU)
    with pytest.raises(ModelError, match="fails on the GPU: CUDA failure 700") as caught, graph._explained():
        raise states.EPFail("CUDA failure 700: an illegal memory access was encountered")
    assert "driver" in caught.value.problems[0].fix


def test_want_of_a_gpus_memory_is_no_fault_of_the_graph(onnx: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    def session(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["enable_fallback"] == 0, "it would take the processor, and print why"
        raise states.RuntimeException("Failed to allocate memory for requested buffer of size 8")

    monkeypatch.setattr(onnx_runtime.onnxruntime, "InferenceSession", session)
    with pytest.raises(torch.OutOfMemoryError, match="Failed to allocate"):
        Graph(onnx.path, GPU).open()


def test_a_side_says_what_its_engine_computes_in(onnx: Artifact, source: Artifact) -> None:
    shown = [_side("candidate", Viewpoint(one, HERE, {}, (), "", 0, 1)).engine for one in (onnx, source)]
    assert shown == ["model: onnx float32", "torch float32 eager"]
    narrow = onnx.packing({"model": Quantization("int8", 8, "nncf")})
    assert _side("candidate", Viewpoint(narrow, HERE, {}, (), "", 0, 1)).engine == "model: onnx int8"


def test_where_operators_were_placed_is_told(onnx: Artifact) -> None:
    options = onnx_runtime.onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnx_runtime.onnxruntime.InferenceSession(str(onnx.path / GRAPH), options)
    assert onnx_runtime._placed(session, True) == {}
    found = onnx_runtime._placed(session, False)
    assert found.keys() == {"CPUExecutionProvider"}
    assert found["CPUExecutionProvider"] > 10
    opened = open_language(onnx, HERE)
    assert computed_by(opened) == ""
    opened.model.decoder.graph.placed = {"CUDAExecutionProvider": 90, "CPUExecutionProvider": 4}
    assert computed_by(opened) == "`model`: 4 × CPUExecutionProvider, 90 × CUDAExecutionProvider"


def test_an_operator_without_a_kernel_is_the_graphs_affair(onnx: Artifact) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    graph = Graph(onnx.path, torch.device(DEVICE))
    with pytest.raises(ModelError, match="has no kernel for what the graph asks") as caught, graph._explained():
        raise states.NotImplemented("FC3 is not implemented for CPU MoE.")
    assert caught.value.problems[0].place == str(onnx.path)


# ---------------------------------------------------------------- llama.cpp


@needs_llama_cpp
def test_llama_cpp_keeps_to_the_device_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it takes all GPUs that there are: a run on the processor would be timed there."""
    import ctypes

    import llama_cpp

    from compress.engines.gguf.runtime import NO_DEVICES, placed

    here = placed(llama_cpp, torch.device("cpu"))
    assert (here.n_gpu_layers, here.devices) == (0, ctypes.addressof(NO_DEVICES))
    assert NO_DEVICES[0] is None
    if not llama_cpp.llama_supports_gpu_offload():
        with pytest.raises(UserError, match=r"llama\.cpp finds no GPU here, and the device is cuda:1") as caught:
            placed(llama_cpp, GPU)
        assert "GGML_CUDA" in caught.value.problems[0].fix
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    there = placed(llama_cpp, GPU)
    assert there.n_gpu_layers > 1000
    assert (there.main_gpu, there.split_mode, there.devices) == (1, llama_cpp.LLAMA_SPLIT_MODE_NONE, None)


@needs_llama_cpp
def test_want_of_a_gpus_memory_is_told_from_a_damaged_file() -> None:
    from compress.engines.gguf.runtime import judge_memory

    message = [
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory"
    ]
    with pytest.raises(torch.OutOfMemoryError, match="cudaMalloc failed"):
        judge_memory(GPU, message)
    judge_memory(torch.device("cpu"), message)
    judge_memory(GPU, ["invalid magic characters"])


@needs_llama_cpp
def test_llama_cpp_gives_the_callers_device_its_values(source: Artifact, gguf: Artifact) -> None:
    ours, theirs = open_language(gguf, HERE), open_language(source, HERE)
    with Watched() as watched:
        answers = ours.generate(PROMPTS, 12)
        sampled = ours.generate(PROMPTS[:1], 6, do_sample=True, top_k=5)
        scores = ours.token_logprobs(TEXTS, 2)
    assert watched.seen
    assert answers == theirs.generate(PROMPTS, 12)
    assert len(sampled[0]) == 6
    for a, b in zip(scores, theirs.token_logprobs(TEXTS, 2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_onnx_runtime_leaves_nothing_behind(onnx: Artifact) -> None:
    opened = open_language(onnx, HERE)
    with Watched() as watched:
        assert len(opened.generate(PROMPTS, 4)[0]) == 4
        assert np.isfinite(opened.token_logprobs(TEXTS, 2)[0]).all()
    assert watched.seen


def test_gguf_is_read_back_on_the_device_of_the_run(source: Artifact, tmp_path: Path) -> None:
    with Watched() as watched:
        made, notes = apply("build.gguf", source, tmp_path / "out", opening=HERE, precision="float32")
    assert watched.seen
    assert (made.path / MODEL).is_file()
    assert float(notes[0].facts["relative"]) < 1e-3


def test_the_gpu_build_of_onnx_runtime_counts_as_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise deps.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(deps, "_version", found)
    assert deps.version("onnxruntime") == "1.31.1"
    assert deps.version("onnx") == ""
