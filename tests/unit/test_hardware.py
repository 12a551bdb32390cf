"""`pare plan --for`: what each stage is worth on a GPU that is not here, from one table of GPUs and number formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.catalogue import find_stage, stage_names
from compress.cli import main
from compress.errors import UserError
from compress.machine import deps, gpus
from compress.machine.kernels import CARDS, FORMATS, card, gpu_of
from compress.planning.hardware import Fit, fits, room
from compress.recipe.values import Recipe
from tests.tiny import tiny_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def judged(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """By its id, what a stage is worth on a GPU, in a recipe of these steps."""
    real = deps.version
    monkeypatch.setattr(deps, "version", lambda name: real(name) or "1")

    def judge(gpu: str, *steps: str, device: str = "cuda") -> dict[str, Fit]:
        recipe = tmp_path / "recipe.yaml"
        data = "{train: zoo://docstrings/train, calibration: zoo://docstrings/validation}"
        recipe.write_text(
            f"schema: 1\nname: x\nmodel: {llama}\ndevice: {device}\ndata: {data}\nstages: [{', '.join(steps)}]\n"
        )
        asked = card(gpu)
        with gpus.supposing(gpu_of(asked)):
            return {fit.id: fit for fit in fits(compress.plan(recipe, cache=tmp_path / "cache"), asked)}

    return judge


def test_a_format_is_told_by_the_generation(judged: Any) -> None:
    step = "quantize.torchao: {mode: int8_dynamic}"
    (ampere,) = judged("A100", step).values()
    assert (ampere.runs, ampere.computes) == (True, "int8 products")
    gptq = "quantize.gptq: {bits: 4, group_size: 32}"
    assert judged("H100", gptq)["quantize.gptq"].computes == FORMATS["marlin"].title
    (old,) = judged("T4", gptq).values()
    assert old.runs
    assert "unpacked at each call; kernels from SM80 on" in old.why
    (odd,) = judged("H100", "quantize.gptq: {bits: 3, group_size: 32, ignore: ['*.k_proj', '*.v_proj']}").values()
    assert odd.computes == FORMATS["unpacked"].title


def test_float8_begins_with_its_generation(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = "quantize.torchao: {mode: float8}"
    with pytest.raises(UserError, match="float8 computes in bfloat16, and the model is stored in float32"):
        judged("L40S", step)
    monkeypatch.setattr("compress.quantization.packed_places.stored_type", lambda artifact, name="": "BF16")
    assert judged("L40S", step)["quantize.torchao"].computes == "float8 products"
    with pytest.raises(UserError, match="A100, SM80"):  # the stage's own refusal, as on a machine that has one
        judged("A100", step)


def test_training_takes_what_accelerate_takes(judged: Any) -> None:
    taught = "distill.logits: {steps: 2}"
    steps = ("prune.width: {ratio: 0.5}", taught)
    assert judged("H100", *steps)["distill.logits"].computes == "teaches in bfloat16"
    assert judged("T4", *steps)["distill.logits"].computes == "teaches in float32"
    forced = judged("T4", steps[0], "distill.logits: {steps: 2, precision: bfloat16}")["distill.logits"]
    assert "emulated" in forced.why
    assert forced.runs


def test_engines_of_processors_do_not_run_there(judged: Any) -> None:
    found = judged("H100", "build.openvino", "quantize.nncf: {mode: int8_weights}", device="cpu")
    assert [fit.runs for fit in found.values()] == [False, False]
    assert "OpenVINO runs on a processor" in found["build.openvino"].why


def test_a_choice_is_made_on_the_device_of_the_run(judged: Any) -> None:
    step = "build.fastest: {engines: [], hooks: [compile]}"
    (here,) = judged("H100", step, device="cpu").values()
    assert not here.runs
    assert here.why.endswith("here cpu: device: cuda")
    (there,) = judged("H100", step).values()
    assert there.runs
    assert there.why == "tries torch with compile, beside torch in float32"
    (auto,) = judged("H100", "build.fastest: {engines: [gguf, openvino]}").values()
    assert auto.why == (
        "tries gguf in float16, bfloat16, int8_weights; torch with compile, cuda_graph, beside torch in float32"
    )


def test_tensorrt_is_told_the_targets_that_it_builds_for(judged: Any) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    step = "build.tensorrt: {targets: [SM86], library: tensorrt-rtx}"
    (other,) = judged("T4", step, device="cpu").values()
    assert not other.runs
    assert other.why.endswith("targets: [SM75]")
    assert "SM90" not in rtx.ComputeCapability.__members__
    (hopper,) = judged("H100", step, device="cpu").values()
    assert "does not build for SM90" in hopper.why
    (own,) = judged("A10", step, device="cpu").values()
    assert own.runs


def test_a_gpu_goes_by_any_spelling_and_an_unknown_one_is_told_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "rtx-4090"):
        assert card(word) == CARDS["RTX 4090"]
    assert card("sm103").target == "SM103"
    with pytest.raises(UserError, match="no GPU is known as RTX 9999") as raised:
        card("RTX 9999")
    assert all(name in raised.value.problems[0].fix for name in CARDS)
    monkeypatch.setattr(gpus, "gpus_here", lambda: ())
    with pytest.raises(UserError, match="no NVIDIA GPU here"):
        card("here")
    monkeypatch.setattr(gpus, "gpus_here", lambda: (gpus.Gpu("Some GPU", "SM89"),))
    assert card("here").name == "Some GPU"


def test_what_is_supposed_ends_with_the_block() -> None:
    before = gpus.gpus_here()
    with gpus.supposing(gpus.Gpu("H100", "SM90")):
        assert gpus.gpus_here() == (gpus.Gpu("H100", "SM90"),)
        assert gpus.torch_without_cuda() == ""
    assert gpus.gpus_here() == before


def test_the_table_is_whole() -> None:
    assert all(one.source and one.since for one in FORMATS.values())
    assert not FORMATS["int4"].has_kernels("SM90"), "Hopper has no products of 4 bits"
    assert FORMATS["int4"].has_kernels("SM80")
    assert not FORMATS["nvfp4"].has_kernels("SM90")
    for name in stage_names():
        stage = find_stage(name)
        for field, of in stage.params.model_fields.items():
            for value in getattr(of.annotation, "__args__", ()) if field in ("mode", "precision", "bits") else ():
                given = stage.params.model_construct(**{field: value})
                assert stage.kernels(given) in {"", *FORMATS}, f"{name}: {value}"


def test_the_room_is_told_where_both_numbers_are_known(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"schema: 1\nname: x\nmodel: {llama}\nstages: [prune.width: {{ratio: 0.5}}]\n")
    plan = compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    assert isinstance(plan.recipe, Recipe)
    assert "of its 24 GB" in room(plan, card("RTX 4090"))
    assert room(plan, card("SM89")) == ""


def test_the_command_prints_it_and_json_holds_it(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"schema: 1\nname: x\nmodel: {llama}\ndevice: cuda\nstages: [quantize.torchao: {{}}]\n")
    for more in ((), ("--json",)):
        with pytest.raises(SystemExit) as left:
            main(["plan", str(recipe), "--for", "RTX 4090", "--cache", str(tmp_path / "cache"), *more])
        assert not left.value.code
    text, _, told = capsys.readouterr().out.partition("\n[")
    assert "on RTX 4090, SM89" in text
    assert "multiplies float32, float16, bfloat16, int8, float8, int4" in text
    assert "has no kernels for nvfp4 (from SM100 on)" in text
    assert "int8 weights, bfloat16 products" in text
    (found,) = json.loads("[" + told)
    assert found["device"] == "cuda:0"
    assert found["for"]["gpu"] == {"name": "RTX 4090", "target": "SM89", "gigabytes": 24}
    assert [fit["runs"] for fit in found["for"]["stages"]] == [True]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
        ("9.0", "SM90"),
        ("sm120", "SM120"),
    ],
)
def test_a_gpu_may_be_called_as_nvidia_smi_calls_it(word: str, name: str) -> None:
    assert card(word).name == name


@pytest.mark.parametrize("word", ["", "L40", "A1000", "SM35", "3.5", "100"])
def test_another_gpu_is_not_taken_for_one_that_is_known(word: str) -> None:
    with pytest.raises(UserError, match="no GPU is known as"):
        card(word)
