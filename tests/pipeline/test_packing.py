"""quantize.bitsandbytes and quantize.torchao leave checkpoints that stock libraries open, and that give what pare measures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.artifact import Artifact
from compress.catalogue import find_task
from compress.engines.torch.runtime import named_dtype, stored_dtype
from compress.execution.reload import probe
from compress.files.hashing import digest_files
from compress.machine.deps import installed
from compress.machine.devices import Opening
from compress.model import bit_widths
from compress.model.describing import describe
from compress.opening import open_task
from compress.opening.computed_by import computed_by
from compress.quantization.reach import reach
from compress.tasks import Usage
from evaluation.comparison.compare import _inside, _side
from evaluation.metrics.size import weights_read
from evaluation.observe.collect import Viewpoint
from tests.families import tiny_text
from tests.opened_alone import called_here, first_call, opened_alone
from tests.stages import apply
from tests.tiny import tiny_diffusion

pytestmark = pytest.mark.skipif(
    not (installed("bitsandbytes") and installed("torchao")), reason="pare[bitsandbytes,torchao] is not installed"
)
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"double_quant": True},
    "fp4": {"compute": "bfloat16"},
    "int8": {},
}
TORCHAO: dict[str, dict[str, Any]] = {"int8_weights": {}, "int8_dynamic": {}}
WAYS = [
    *(("quantize.bitsandbytes", {"mode": mode, **more}) for mode, more in BITSANDBYTES.items()),
    *(("quantize.torchao", {"mode": mode, **more}) for mode, more in TORCHAO.items()),
]
NAMES = [way[1]["mode"] for way in WAYS]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Wide enough for blocks of 64 inputs and 32 outputs."""
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    return describe(tiny_text(tmp_path_factory.mktemp("llama"), "qwen2", **wide))


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("generator")))


@pytest.fixture(scope="module")
def packed(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The language model, packed each way, one of its layers left."""
    folder = tmp_path_factory.mktemp("packed")
    ignore = ("*.layers.1.*.o_proj",)
    return {
        name: apply(stage, llama, folder / name, ignore=ignore, **params)[0]
        for name, (stage, params) in zip(NAMES, WAYS, strict=True)
    }


def test_stock_libraries_give_what_pare_measures_bit_by_bit(packed: dict[str, Artifact], tmp_path: Path) -> None:
    call = {"input_ids": torch.arange(20)[None]}
    alone = opened_alone([(a, "model") for a in packed.values()], [call] * len(packed), tmp_path / "alone")
    ours = [called_here(artifact, "model", call) for artifact in packed.values()]
    assert all(torch.equal(one, other) for one, other in zip(alone, ours, strict=True))
    for name, one in zip(packed, ours, strict=True):
        others = [other for other in ours if other is not one]
        assert not any(torch.equal(one, other) for other in others), name
        assert one.std() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_model_is_smaller_and_close_and_what_is_ignored_stays(
    name: str, packed: dict[str, Artifact], llama: Artifact
) -> None:
    artifact = packed[name]
    call = {"input_ids": torch.arange(20)[None]}
    before, after = called_here(llama, "model", call), called_here(artifact, "model", call)
    assert (after - before).norm() < (0.7 if name in ("nf4", "fp4") else 0.05) * before.norm()  # 1.4 where unlike
    sizes = [sum(file.stat().st_size for file in weights_read(a)) for a in (llama, artifact)]
    assert sizes[1] < 0.8 * sizes[0]
    found = reach(llama, "model", ("*.layers.1.*.o_proj",))
    narrow = {"nf4": "nf4", "fp4": "fp4"}.get(name, "int8")
    assert len(found.packed) == 13
    assert bit_widths.shares(artifact, "model")[narrow] == pytest.approx(found.share)
    assert stored_dtype(artifact.path) == torch.float32
    assert not list(artifact.path.glob("*.bin"))
    config = artifact.config("model")
    assert config["dtype"] == "float32"
    assert describe(artifact.path).components["model"].quantization == artifact.components["model"].quantization
    assert probe(artifact.path)["finite"]


def test_what_computes_packed_layers_is_asked_of_the_opened_model(packed: dict[str, Artifact], llama: Artifact) -> None:
    expected = {"nf4": "Linear4bit", "fp4": "Linear4bit", "int8": "Linear8bitLt"}
    for name, artifact in packed.items():
        assert computed_by(open_task(artifact)) == f"`model`: 13 × {expected.get(name, 'Int8Tensor')}"
    assert computed_by(open_task(llama)) == ""


def test_a_timed_side_says_what_computed_its_packed_layers(packed: dict[str, Artifact]) -> None:
    artifact = packed["int8_weights"]
    view = Viewpoint(artifact, Opening(), {}, (), "", 0, 1)
    inside = _inside("candidate", open_task(artifact), lambda event: None)
    described = _side("candidate", view, inside).engine
    assert described == "torch eager, `model` by torchao in 8 bits (`model`: 13 × Int8Tensor)"


@pytest.mark.parametrize(("stage", "params"), WAYS, ids=NAMES)
def test_equal_work_gives_equal_bytes(
    stage: str, params: dict[str, Any], llama: Artifact, packed: dict[str, Artifact], tmp_path: Path
) -> None:
    again, notes = apply(stage, llama, tmp_path / "again", ignore=("*.layers.1.*.o_proj",), **params)
    assert digest_files(again.path) == digest_files(packed[params["mode"]].path)
    assert notes[-1].facts["layers"] == 13


def test_each_part_of_a_pipeline_is_packed_by_its_own_choice(generator: Artifact, tmp_path: Path) -> None:
    one, _ = apply("quantize.torchao", generator, tmp_path / "1", components=("unet",), ignore=("time_embedding",))
    two, _ = apply(
        "quantize.bitsandbytes", one, tmp_path / "2", components=("text_encoder",), ignore=("*.fc1",), mode="int8"
    )
    made, _ = apply("quantize.torchao", two, tmp_path / "3", components=("vae",), mode="int8_dynamic")
    quantization = {name: part.quantization for name, part in made.components.items()}
    assert {name: (q.method, q.bits) for name, q in quantization.items() if q} == {
        "unet": ("torchao", 8),
        "text_encoder": ("bitsandbytes", 8),
        "vae": ("torchao", 8),
    }
    assert bit_widths.shares(made, "text_encoder")["int8"] < reach(generator, "text_encoder").share
    parts = [(made, name) for name in ("unet", "text_encoder", "vae")]
    calls = [first_call(made, name) for _, name in parts]
    alone = opened_alone(parts, calls, tmp_path / "alone")
    for (artifact, name), call, other in zip(parts, calls, alone, strict=True):
        assert torch.equal(called_here(artifact, name, call), other), name
    task: Any = open_task(made)
    images = task.generate(["a red three", "blue"], ["0", "1"], 0, num_inference_steps=3)
    assert images.std() > 5


def test_a_pipeline_in_half_precision_stays_one(tmp_path: Path) -> None:
    source = describe(tiny_diffusion(tmp_path / "half", dtype=torch.bfloat16))
    made, _ = apply("quantize.torchao", source, tmp_path / "made", components="all")
    assert {stored_dtype(made.folder(name)) for name in made.working} == {torch.bfloat16}
    task: Any = open_task(made)
    assert task.generate(["a red three"], ["0"], 0, num_inference_steps=2).std() > 1


KERNELS = """
def get_kernel(*name, **options):
    raise SystemExit("fetched native code from the hub")
"""


def test_no_native_code_is_fetched_to_pack_or_to_open(llama: Artifact, tmp_path: Path) -> None:
    """bitsandbytes looks for some where it is imported, on processors with bfloat16 products."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    code = f"""
import sys
from pathlib import Path
from compress.model.describing import describe
from compress.model.exportable import ANY_SIZE
from compress.opening import open_task
from tests.stages import apply
source, out = describe(Path({str(llama.path)!r})), Path({str(tmp_path / "out")!r})
made, _ = apply("quantize.bitsandbytes", source, out, mode="nf4")
open_task(made).probe(ANY_SIZE)
assert "bitsandbytes" in sys.modules and "kernels" not in sys.modules
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_printed_lines_open_a_packed_pipeline_in_its_own_number_type(dtype: str, tmp_path: Path) -> None:
    """diffusers takes bfloat16 where nothing is stated, and parts that torchao packed for another then fail at their first call."""
    from diffusers import StableDiffusionPipeline

    plain = tiny_diffusion(tmp_path / "model")
    if dtype == "bfloat16":
        StableDiffusionPipeline.from_pretrained(plain, torch_dtype=torch.bfloat16).save_pretrained(plain)
    packed, _ = apply("quantize.torchao", describe(plain), tmp_path / "out", components=("unet", "text_encoder"))
    assert named_dtype(packed) == f"torch.{dtype}"
    call = {"num_inference_steps": 1, "output_type": "pil"}
    lines = find_task(packed.task).usage(Usage(str(packed.path), True, call=call, dtype=named_dtype(packed)))
    assert f"torch_dtype=torch.{dtype})" in lines[2]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert (tmp_path / "image.png").stat().st_size > 0


def test_nothing_is_stated_of_other_models(llama: Artifact, generator: Artifact) -> None:
    assert named_dtype(llama) == named_dtype(generator) == ""


def test_a_report_names_how_weights_are_packed(packed: dict[str, Artifact], llama: Artifact) -> None:
    def engine(artifact: Artifact) -> str:
        return _side("candidate", Viewpoint(artifact, Opening("float32"), {}, (), "", 0, 1)).engine

    assert engine(llama) == "torch float32 eager"
    for artifact in packed.values():
        how = artifact.components["model"].quantization
        assert how is not None
        assert engine(artifact).startswith(f"torch float32 eager, `model` by {how.method} in {how.bits} bits")
