"""Native code does what torch does, in the sizes it was built for, and runs only where and as it was built."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.artifact import MANIFEST, Artifact
from compress.building.build import build_engines
from compress.catalogue import find_stage
from compress.context import Context
from compress.engines.builder import Example
from compress.engines.compiled import PACKAGE
from compress.engines.compiled import runtime as compiled
from compress.engines.compiled.build import CompiledBuilder
from compress.engines.compiled.runtime import AGAIN, Package
from compress.engines.module import ENGINE, read_settings
from compress.engines.parity import compare_calls
from compress.errors import PareError, RecipeError, StageFailed, UserError
from compress.files.hashing import digest_file
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.model.exportable import Profile
from compress.opening import open_task
from tests.families import MODELS
from tests.stages import CAPTIONS
from tests.tiny import tiny_diffusion, tiny_llama

TEXTS = ["hello world", "abc", "the quick brown fox jumps over the lazy dog", "x" * 500]
PROMPTS = [[5, 6, 7], [10, 11, 12], list(range(20, 45))]
NAMES = ["0", "1", "2"]


def generate(artifact: Artifact, count: int) -> Any:
    task: Any = open_task(artifact, Opening("float32"))
    return task.generate(CAPTIONS[:count], NAMES[:count], 0, num_inference_steps=3).astype(int)


def build(model: Path, folder: Path, **params: Any) -> tuple[Artifact, Artifact]:
    """A source model and what the executor makes of it: native code runs only from an artifact whose lineage names its maker."""
    return describe(model), compress.apply("build.compiled", model, cache=folder / "cache", **params)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    folder = tmp_path_factory.mktemp("pipeline")
    profile = {"batch": (1, 1, 4)}
    return build(tiny_diffusion(folder), folder, components=("vae",), profile=profile)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    folder = tmp_path_factory.mktemp("llama")
    return build(tiny_llama(folder / "model"), folder)


def agree_in_images(source: Artifact, made: Artifact) -> bool:
    for count in (1, 3):
        theirs = generate(source, count)
        assert np.abs(generate(made, count) - theirs).max() <= 1
        assert theirs.std() > 5  # a constant image would agree with anything
    return True


def agree_in_texts(source: Artifact, made: Artifact) -> bool:
    plain, engine = open_task(source, Opening("float32")), open_task(made)
    ours, theirs = engine.token_logprobs(TEXTS, 2), plain.token_logprobs(TEXTS, 2)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.concatenate(theirs).std() > 0.3
    return bool(engine.generate(PROMPTS, 20) == plain.generate(PROMPTS, 20))


def test_a_compiled_decoder_generates_as_torch_does(pipeline: tuple[Artifact, Artifact]) -> None:
    assert agree_in_images(*pipeline)


def test_a_compiled_language_model_scores_and_writes_as_torch_does(llama: tuple[Artifact, Artifact]) -> None:
    assert agree_in_texts(*llama)


def test_its_folder_holds_the_package_and_no_pickle(pipeline: tuple[Artifact, Artifact]) -> None:
    folder = pipeline[1].folder("vae")
    assert sorted(f.name for f in folder.iterdir()) == sorted([PACKAGE, "config.json", ENGINE])
    with zipfile.ZipFile(folder / PACKAGE) as package:
        names = package.namelist()
        starts = {name: package.read(name)[:4] for name in names}
        code = "".join(package.read(name).decode() for name in names if name.endswith(".cpp"))
    assert sum(name.endswith(".so") for name in names) == 1
    assert not [n for n, start in starts.items() if n.endswith((".pkl", ".pt")) or start[:2] in (b"\x80\x02", b"PK")]
    assert "#pragma omp parallel" in code
    assert not re.findall(r"num_threads\(\d+\)", code)  # else it would run on as many threads as built it, anywhere


def test_what_the_compiler_keeps_lies_in_the_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    (tmp_path / "engine").mkdir()
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    module.forward = lambda z, return_dict: {"sample": module[0](z)}  # type: ignore[method-assign, assignment]
    small, large = ({"z": torch.randn(n, 4)} for n in (2, 3))
    builder = CompiledBuilder("float32", Profile(), tmp_path / "scratch")
    builder.component(Example(module, "forward", small, large), tmp_path / "engine")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert list((tmp_path / "scratch").rglob("*.cpp"))
    package = Package(tmp_path / "engine")
    torch.testing.assert_close(package.run([large["z"]])[0], module[0](large["z"]))
    with pytest.raises(UserError, match=r"takes `z` of \[1 to 32, 4\].*and this call gives \[33, 4\]"):
        package.run([torch.randn(33, 4)])


def test_sizes_it_was_not_built_for_are_refused(pipeline: tuple[Artifact, Artifact]) -> None:
    vae = compress.load(pipeline[1]).vae
    assert vae.decode(torch.randn(8, 4, 8, 8)).sample.shape == (8, 3, 16, 16)  # four prompts, each guided
    for shape in ((9, 4, 8, 8), (1, 4, 16, 16), (4, 8, 8)):
        with pytest.raises(UserError, match=r"takes `z` of \[1 to 8, 4, 8, 8\]") as caught:
            vae.decode(torch.randn(shape))
        assert "`profile`" in caught.value.problems[0].fix


def test_inputs_of_two_batches_are_refused(llama: tuple[Artifact, Artifact]) -> None:
    model = compress.load(llama[1])
    first = model(torch.tensor([[5, 6, 7]]))
    with pytest.raises(UserError, match="equally many rows in all inputs"):
        model(torch.tensor([[8], [9]]), past_key_values=first.past_key_values)


Edit = Callable[[Path], None]


def saying(**changed: Any) -> Edit:
    def edit(folder: Path) -> None:
        (folder / ENGINE).write_text(json.dumps({**read_settings(folder), **changed}))

    return edit


def longer(folder: Path) -> None:
    with (folder / PACKAGE).open("ab") as package:
        package.write(b"x")


def of_no_lineage(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "lineage": []}))


def missing(folder: Path) -> None:
    (folder / PACKAGE).unlink()


def cut_short(folder: Path) -> None:
    (folder / PACKAGE).write_bytes((folder / PACKAGE).read_bytes()[:1000])
    saying(digest=digest_file(folder / PACKAGE))(folder)


def of_no_library(folder: Path) -> None:
    with zipfile.ZipFile(folder / PACKAGE, "w") as package:
        package.writestr("compiled/byteorder", "little")
    saying(digest=digest_file(folder / PACKAGE))(folder)


def of_no_code(folder: Path) -> None:
    with zipfile.ZipFile(folder / PACKAGE, "w") as package:
        package.writestr("compiled/model.so", "none")
    saying(digest=digest_file(folder / PACKAGE))(folder)


@pytest.mark.parametrize(
    ("edit", "message", "fix"),
    [
        (saying(version="2.12.0"), "compiled for torch 2.12.0, and here is torch 2", AGAIN),
        (saying(isa="x86_64 sse4"), "compiled for a processor with x86_64 sse4, and here is", AGAIN),
        (longer, "its digest differs", AGAIN),
        (missing, f"holds no {PACKAGE}", AGAIN),
        (cut_short, "does not load: File is not a zip file", AGAIN),
        (of_no_library, "does not load: it holds no library", AGAIN),
        (of_no_code, "does not load: ", AGAIN),
        (
            of_no_lineage,
            "native code that no build.compiled in the artifact's lineage accounts for",
            "build the engine",
        ),
    ],
    ids=["version", "isa", "digest", "missing", "cut", "empty", "no code", "lineage"],
)
def test_a_package_of_another_origin_is_not_run(
    llama: tuple[Artifact, Artifact], tmp_path: Path, edit: Edit, message: str, fix: str
) -> None:
    folder = shutil.copytree(llama[1].path, tmp_path / "model")
    edit(folder)
    with pytest.raises(PareError) as caught:
        compress.load(folder)
    problem = caught.value.problems[0]
    assert message in problem.message
    assert problem.fix.startswith(fix)
    assert str(folder) in problem.place


def test_two_threads_get_what_each_gets_alone(
    pipeline: tuple[Artifact, Artifact], llama: tuple[Artifact, Artifact]
) -> None:
    vae, model = compress.load(pipeline[1]).vae, compress.load(llama[1])
    latents = [torch.randn(n, 4, 8, 8) for n in (1, 2, 3)]

    def decode(z: torch.Tensor) -> torch.Tensor:
        return vae.decode(z, return_dict=False)[0]  # type: ignore[no-any-return]

    def write(prompt: list[int]) -> list[int]:
        return model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()  # type: ignore[no-any-return]

    images, texts = [decode(z) for z in latents], [write(p) for p in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            assert all(map(torch.equal, pool.map(decode, latents), images))
            assert list(pool.map(write, PROMPTS)) == texts


def test_a_package_is_loaded_once_however_often_it_is_opened(
    pipeline: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch never unloads one: each loading would stay in memory. On disk nothing stays beside the artifact."""

    def libraries() -> set[str]:
        return {
            line.removesuffix(" (deleted)").split()[-1]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "wrapper.so" in line
        }

    monkeypatch.setattr(compiled, "_opened", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    call = [torch.randn(1, 4, 8, 8)]
    first = Package(pipeline[1].folder("vae")).run(call)[0]
    before = libraries()
    outputs = [Package(pipeline[1].folder("vae")).run(call)[0] for _ in range(20)]
    assert list(tmp_path.iterdir()) == []
    assert any(str(tmp_path) in library for library in before), "it was loaded from elsewhere"
    assert libraries() == before
    assert all(torch.equal(out, first) for out in outputs)
    assert len({out.data_ptr() for out in outputs}) == 20  # each its own


def test_without_a_compiler_the_plan_says_what_to_install(
    pipeline: tuple[Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = find_stage("build.compiled")
    assert stage.refuse(pipeline[0], stage.params()) == ""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler `no-such-compiler`: install one" in stage.refuse(pipeline[0], stage.params())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert "such as the package g++" in stage.refuse(pipeline[0], stage.params())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2", "gemma2", "mistral"])
def test_language_models_of_other_families_write_as_torch_does(family: str, tmp_path: Path) -> None:
    assert agree_in_texts(*build(MODELS[family](tmp_path / "model"), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "pixart-sigma", "sd3-no-t5", "flux", "sana"])
def test_pipelines_of_other_families_generate_as_torch_does(family: str, tmp_path: Path) -> None:
    assert agree_in_images(*build(MODELS[family](tmp_path / "model"), tmp_path))


@pytest.mark.slow
def test_in_bfloat16_it_takes_and_gives_float32_and_is_near(tmp_path: Path) -> None:
    source, made = build(tiny_diffusion(tmp_path), tmp_path, components=("unet",), precision="bfloat16")
    assert 0 < np.abs(generate(made, 3) - generate(source, 3)).mean() < 3
    settings = read_settings(made.folder("unet"))
    dtypes = {port["name"]: port["dtype"] for port in settings["inputs"]}
    assert dtypes == {"sample": "bfloat16", "timestep": "float32", "encoder_hidden_states": "bfloat16"}
    call = {"timestep": torch.tensor(999.0), "encoder_hidden_states": torch.randn(2, 16, 32)}
    given = compress.load(made).unet(torch.randn(2, 4, 8, 8), **call).sample
    assert given.dtype == torch.float32
    assert bool(given.isfinite().all())


@pytest.mark.slow
def test_an_encoder_is_compiled_as_a_component(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    module = BertModel(config).eval()
    config.save_pretrained(tmp_path)
    tokens = torch.randint(0, 99, (3, 12))
    small, large = ({"input_ids": tokens[:n], "attention_mask": torch.ones_like(tokens[:n])} for n in (2, 3))
    large["attention_mask"][0, 8:] = 0  # padding counts
    builder = CompiledBuilder("float32", Profile(), tmp_path / "scratch")
    builder.component(Example(module, "forward", small, large), tmp_path)
    engine = builder.open_component(tmp_path, "transformers", "BertModel")
    assert 0 < compare_calls(module, engine, "forward", large).relative < 1e-5


@pytest.mark.slow
def test_the_layer_where_native_code_breaks_is_named(tmp_path: Path) -> None:
    class Damaging(CompiledBuilder):
        def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
            weight = example.module.get_parameter("decoder.mid_block.resnets.0.conv1.weight")
            with torch.no_grad():
                kept = weight.clone()
                weight.mul_(1.2)
                super().component(example, folder, watched)
                weight.copy_(kept)

    (tmp_path / "out").mkdir()
    builder = Damaging("float32", Profile(), tmp_path / "scratch")
    with pytest.raises(StageFailed, match=r"first in its layer `decoder.mid_block.resnets.0.conv1`"):
        build_engines(
            describe(tiny_diffusion(tmp_path)), ("vae",), builder, Context(tmp_path / "out", tmp_path / "scratch")
        )


@pytest.mark.parametrize(
    ("step", "evaluate", "message"),
    [
        ("{}", "metrics: [throughput], prompt_tokens: 800, new_tokens: 800", ""),
        ("{}", "metrics: [throughput], timing_batch: 17", r"timing_batch makes calls of 17, .* batch from 1 to 16"),
        ("{}", "metrics: [perplexity], samples: 8, batch: 17", ""),
        (
            "{profile: {batch: [2, 2, 4]}}",
            "metrics: [perplexity], samples: 9, batch: 4",
            r"samples makes calls of 1, .* batch from 2 to 4",
        ),
    ],
)
def test_the_batches_of_a_recipe_are_held_against_the_profile(
    tmp_path: Path, step: str, evaluate: str, message: str
) -> None:
    model = tiny_llama(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n\n".join(f"text {i} of some" for i in range(20)))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"schema: 1\nname: x\nmodel: {model}\ndata: {{evaluate: ./texts.txt}}\n"
        f"stages:\n  - build.compiled: {step}\nevaluate: {{{evaluate}}}\n"
    )
    if not message:
        assert compress.check(path, cache=tmp_path / "cache")
        return
    with pytest.raises(RecipeError, match=message):
        compress.check(path, cache=tmp_path / "cache")
