"""quantize.llamacpp: what a layer's inputs weigh, against torch; and files that llama.cpp's quantizer makes, where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.context import Context
from compress.data.items import Data, Item
from compress.engines.gguf import MODEL
from compress.engines.gguf.importance import importance
from compress.engines.gguf.stored import stored
from compress.engines.module import read_settings
from compress.machine.deps import installed
from compress.model.describing import describe
from compress.opening import open_language
from tests.families import tiny_text
from tests.stages import apply
from tests.tiny import tiny_llama

STAGE = "quantize.llamacpp"
TEXTS = [f"the {word} of an array along an axis" for word in ("sum", "mean", "shape", "order", "index")]
DATA = Data("sentences", "texts", "digest", len(TEXTS), lambda i: Item(str(i), TEXTS[i]))
ROWS = [[0, 5, 9, 77, 31], [0, 140, 7]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def built(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply("build.gguf", llama, tmp_path_factory.mktemp("built") / "out", precision="float32")[0]


@pytest.fixture
def quiet(tmp_path: Path) -> Context:
    return Context(tmp_path / "out", tmp_path / "scratch")


def test_importance_is_the_mean_square_of_what_a_layer_is_given(
    llama: Artifact, built: Artifact, quiet: Context
) -> None:
    found = dict(importance(built.folder(LANGUAGE_MODEL), "LlamaForCausalLM", ROWS, quiet))
    model = LlamaForCausalLM.from_pretrained(llama.path, dtype=torch.float32).eval()
    given: list[torch.Tensor] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: given.append(args[0][0]))
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([row]))
    wanted = torch.cat(given).double().square().mean(0).float().numpy()
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], wanted, rtol=1e-4)
    layers = model.config.num_hidden_layers
    assert len([name for name in found if name.startswith("blk.")]) == 7 * layers
    assert ("output.weight" in found) != model.config.tie_word_embeddings


def test_a_transposed_layer_is_counted_by_its_inputs(tmp_path: Path, quiet: Context) -> None:
    gpt2 = apply("build.gguf", describe(tiny_text(tmp_path / "gpt2", "gpt2")), tmp_path / "out", precision="float32")[0]
    found = dict(importance(gpt2.folder(LANGUAGE_MODEL), "GPT2LMHeadModel", ROWS, quiet))
    config = gpt2.config(LANGUAGE_MODEL)
    assert found["blk.0.ffn_down.weight"].shape == (config.get("n_inner") or 4 * config["n_embd"],)
    assert found["blk.0.attn_qkv.weight"].shape == (config["n_embd"],)


needs_llama_cpp = pytest.mark.skipif(not installed("llama_cpp"), reason="llama-cpp-python compiles for ten minutes")


@needs_llama_cpp
def test_rounding_to_q4_0_gives_the_numbers_that_build_gguf_writes(
    llama: Artifact, built: Artifact, tmp_path: Path
) -> None:
    """Two implementations of one type: llama.cpp's and the gguf package's."""
    from gguf import GGUFReader

    theirs, _ = apply(STAGE, built, tmp_path / "theirs", type="q4_0")
    ours, _ = apply("build.gguf", llama, tmp_path / "ours", precision="int4_weights")
    read = [{t.name: t for t in GGUFReader(a.folder(LANGUAGE_MODEL) / MODEL).tensors} for a in (theirs, ours)]
    same = [name for name in read[0] if read[0][name].tensor_type == read[1][name].tensor_type]
    assert len(same) > 10
    for name in same:
        np.testing.assert_array_equal(read[0][name].data, read[1][name].data, err_msg=name)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("params", "held"),
    [
        ({"type": "q6_k"}, "int8"),  # rows of 32 in a tiny model, where Q6_K falls back to Q8_0
        ({"type": "q4_k_m", "importance": True, "samples": 4, "length": 16}, "Q5_0"),
        ({"type": "iq2_m", "importance": True, "samples": 4, "length": 16}, "IQ4_NL"),
        ({"type": "q4_0", "embeddings": "f16"}, "float16"),
        ({"type": "q4_0", "embeddings": "bf16"}, "bfloat16"),
    ],
    ids=lambda given: str(given.get("type")) if isinstance(given, dict) else "",
)
def test_what_llama_cpp_makes_is_smaller_and_writes(
    built: Artifact, params: dict[str, object], held: str, tmp_path: Path
) -> None:
    made, _ = apply(STAGE, built, tmp_path / "out", data=DATA, **params)
    folder = made.folder(LANGUAGE_MODEL)
    assert held in stored(folder)
    assert (folder / MODEL).stat().st_size < (built.folder(LANGUAGE_MODEL) / MODEL).stat().st_size
    assert read_settings(folder)["precision"] == params["type"]
    packed = describe(made.path).components[LANGUAGE_MODEL].quantization
    assert packed is not None
    assert packed.method == params["type"]
    (tokens,) = open_language(made).generate([[5, 6, 7]], 8)
    assert len(tokens) == 8
