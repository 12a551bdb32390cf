"""Native code made of tiny models: it computes what torch does, at the sizes it was built for, and only where it was made."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from compress.artifact import MANIFEST, Artifact, describe
from compress.catalogue import find_stage
from compress.engines.builder import Example
from compress.engines.compiled import PACKAGE, load_component
from compress.engines.compiled_build import CompiledBuilder
from compress.engines.parity import compare_calls
from compress.errors import ModelError, UserError
from compress.graphs import Profile
from compress.tasks import open_task
from tests.families import MODELS
from tests.stages import CAPTIONS, apply
from tests.tiny import tiny_diffusion, tiny_llama

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12]]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(scope="module")
def built(pipeline: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("built") / "out"
    return apply("build.compiled", pipeline, out, components=("vae",), profile={"batch": (1, 1, 4)})[0]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    source = describe(tiny_llama(tmp_path_factory.mktemp("llama")))
    made, _ = apply("build.compiled", source, tmp_path_factory.mktemp("built-llama") / "out")
    return open_task(source), open_task(made)


def test_it_paints_what_torch_paints_at_any_batch_of_its_profile(pipeline: Artifact, built: Artifact) -> None:
    plain: Any = open_task(pipeline)
    engine: Any = open_task(built)
    for count in (1, 3):
        call = (list(CAPTIONS[:count]), [str(i) for i in range(count)], 0)
        ours, theirs = (t.paint(*call, num_inference_steps=2).astype(int) for t in (engine, plain))
        assert np.abs(ours - theirs).max() <= 1
        assert theirs.std() > 5


def test_a_batch_outside_its_profile_is_refused_with_both_sizes(built: Artifact) -> None:
    engine: Any = open_task(built)
    with pytest.raises(UserError, match=r"takes `z` of \[1 to 8, 4, 8, 8\].* and this call gives \[9, 4, 8, 8\]"):
        engine.component("vae").decode(torch.randn(9, 4, 8, 8))
    with pytest.raises(UserError, match=r"gives \[1, 4, 16, 16\]"):
        engine.component("vae").decode(torch.randn(1, 4, 16, 16))


def test_it_scores_and_writes_as_torch_does_whatever_the_lengths(llamas: tuple[Any, Any]) -> None:
    plain, engine = llamas
    texts = ["hello", "a", "the quick brown fox jumps over the lazy dog"]
    for a, b in zip(plain.token_logprobs(texts, 2), engine.token_logprobs(texts, 2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert engine.generate(PROMPTS, 12) == plain.generate(PROMPTS, 12)
    call = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 1, "num_beams": 3}
    beams = [t.model.generate(torch.tensor([PROMPTS[0]]), **call).tolist() for t in llamas]
    assert beams[0] == beams[1]


def test_a_package_holds_no_pickle(built: Artifact) -> None:
    names = zipfile.ZipFile(built.folder("vae") / PACKAGE).namelist()
    assert any(name.endswith(".so") for name in names)
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth"))]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", "2.0.0", "compiled for torch 2.0.0, and here is torch"),
        ("isa", "x86_64 mmx", "compiled for a processor with x86_64 mmx"),
        ("digest", "0" * 64, "its digest differs"),
    ],
)
def test_an_engine_from_elsewhere_is_never_loaded(
    built: Artifact, tmp_path: Path, field: str, value: str, said: str
) -> None:
    moved = shutil.copytree(built.path, tmp_path / "moved")
    settings = json.loads((moved / "vae/engine.json").read_text())
    (moved / "vae/engine.json").write_text(json.dumps({**settings, field: value}))
    with pytest.raises(ModelError, match=said) as caught:
        load_component(moved / "vae", "diffusers", "AutoencoderKL", None, "cpu")
    assert "run the recipe again" in caught.value.problems[0].fix


def test_native_code_of_unknown_origin_is_never_run(built: Artifact, tmp_path: Path) -> None:
    moved = shutil.copytree(built.path, tmp_path / "moved")
    manifest = json.loads((moved / MANIFEST).read_text())
    (moved / MANIFEST).write_text(json.dumps({**manifest, "lineage": []}))
    with pytest.raises(ModelError, match=r"native code that no build\.compiled"):
        load_component(moved / "vae", "diffusers", "AutoencoderKL", None, "cpu")
    (moved / "vae" / PACKAGE).unlink()
    (moved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"holds no compiled\.pt2"):
        load_component(moved / "vae", "diffusers", "AutoencoderKL", None, "cpu")


def test_without_a_compiler_the_plan_says_what_to_install(pipeline: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    stage = find_stage("build.compiled")
    assert "no C++ compiler `no-such-compiler`: install one" in stage.refuse(pipeline, stage.params())


@pytest.mark.slow
def test_a_bert_encoder_is_compiled_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=100, **shape)).eval()
    bert.save_pretrained(tmp_path)
    calls = [{"input_ids": torch.randint(0, 100, (n, 9)), "attention_mask": torch.ones(n, 9).long()} for n in (2, 3)]
    builder = CompiledBuilder("float32", Profile(), tmp_path / "scratch")
    builder.component(Example(bert, "forward", *calls), tmp_path)
    engine = builder.open_component(tmp_path, "transformers", "BertModel")
    assert compare_calls(bert, engine, "forward", calls[1]).relative < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart-sigma", "sd3-no-t5", "flux", "qwen2", "gpt2", "opt"])
def test_families_are_compiled_and_agree(family: str, tmp_path: Path) -> None:
    source = describe(MODELS[family](tmp_path / "model"))
    made, notes = apply("build.compiled", source, tmp_path / "out")
    assert {made.components[n].format for n in source.working} == {"compiled"}
    assert all(0 <= n.facts["relative"] < 1e-4 for n in notes if "relative" in n.facts)
