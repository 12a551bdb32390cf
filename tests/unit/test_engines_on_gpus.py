"""Which engines run on a GPU with the libraries that are installed: known from names of files, when a recipe is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import compress
from compress.artifact import LANGUAGE_MODEL
from compress.catalogue import find_engine
from compress.errors import RecipeError, UserError
from compress.machine import deps, devices, gpus
from compress.machine.devices import Opening
from compress.machine.gpus import Gpu, has_files
from compress.machine.kernels import card, gpu_of
from compress.model.describing import describe
from compress.planning.hardware import fits
from compress.planning.step_checks import elsewhere, engine_places
from compress.zoo import zoo_model

L4 = Gpu("NVIDIA L4", "SM89")
FOR_GPUS = {"llama_cpp": "lib/libggml-cuda.so", "onnxruntime": "capi/libonnxruntime_providers_cuda.so"}
LACKING = {
    "build.gguf": ("llama-cpp-python is built for processors alone here, and the device is cuda:0", "GGML_CUDA=on"),
    "build.onnxruntime": (
        "onnxruntime is the one for processors alone here, and the device is cuda:0",
        "onnxruntime-gpu",
    ),
}


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpus_here", lambda: (L4,))
    monkeypatch.setattr(gpus, "torch_without_cuda", lambda: "")
    monkeypatch.setattr(devices, "_no_mps", lambda: "no mps")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes folders of the two libraries be found, with or without the part that computes on GPUs."""
    real, places = gpus.find_spec, {}

    class Spec:
        def __init__(self, place: Path) -> None:
            self.submodule_search_locations = [str(place)]

    def install(with_cuda: bool) -> None:
        for module, file in FOR_GPUS.items():
            place = places[module] = tmp_path / f"{module}-{with_cuda}"
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).with_name("libbase.so").touch()
            if with_cuda:
                (place / file).touch()

    monkeypatch.setattr(gpus, "find_spec", lambda name: Spec(places[name]) if name in places else real(name))
    real_version = deps.version
    monkeypatch.setattr(deps, "version", lambda name: real_version(name) or "1")
    return install


def planned(folder: Path, *steps: str, device: str = "cuda") -> compress.Plan:
    recipe = folder / "r.yaml"
    recipe.write_text(
        f"schema: 1\nname: r\nmodel: zoo://docs-llama\ndevice: {device}\nstages:\n  - " + "\n  - ".join(steps) + "\n"
    )
    return compress.plan(recipe, cache=folder / "cache")


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("stage", LACKING)
def test_a_library_without_the_gpus_part_is_refused_with_what_to_install(
    stage: str, installed: Any, tmp_path: Path
) -> None:
    installed(with_cuda=False)
    why, install = LACKING[stage]
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, f"{stage}: {{}}")
    (problem,) = [p for p in caught.value.problems if why in p.message]
    assert problem.place.endswith("r.yaml:6:5")
    assert problem.fix.startswith("device: cpu, or ")
    assert install in problem.fix
    assert problem.fix.endswith("or leave this stage out")


@pytest.mark.usefixtures("a_gpu")
def test_both_of_onnx_runtimes_distributions_at_once_are_refused(
    installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(with_cuda=True)
    monkeypatch.setattr(deps, "_version", lambda name: "1.31.1")
    with pytest.raises(RecipeError, match="onnxruntime and onnxruntime-gpu are both installed here") as caught:
        planned(tmp_path, "build.onnxruntime: {}")
    assert "pip uninstall onnxruntime onnxruntime-gpu" in caught.value.problems[0].fix


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    ("precision", "why"), [("int4_weights", "it was built in int4_weights, for processors"), ("float16", "")]
)
def test_a_graph_for_processors_is_not_opened_on_a_gpu(
    precision: str, why: str, installed: Any, tmp_path: Path
) -> None:
    installed(with_cuda=True)
    (tmp_path / "engine.json").write_text(f'{{"precision": "{precision}"}}')
    assert find_engine("onnx").unfit(tmp_path, "cuda:0") == why  # type: ignore[misc]
    assert find_engine("onnx").unfit(tmp_path, "cpu") == ""  # type: ignore[misc]


@pytest.mark.usefixtures("a_gpu")
def test_float32_is_no_precision_of_llama_cpps_on_a_gpu(installed: Any, tmp_path: Path) -> None:
    installed(with_cuda=True)
    with pytest.raises(RecipeError, match="multiplies float32 as TF32 on a GPU"):
        planned(tmp_path, "build.gguf: {precision: float32}")


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("stage", LACKING)
def test_a_library_with_it_is_planned(stage: str, installed: Any, tmp_path: Path) -> None:
    installed(with_cuda=True)
    (node,) = planned(tmp_path, f"{stage}: {{}}").nodes
    (format,) = {part.format for part in node.expected.components.values()}
    assert format in ("gguf", "onnx")


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_an_engine_on_disk_is_refused_before_it_is_opened(format: str, installed: Any) -> None:
    made = describe(zoo_model("docs-llama")).replacing({LANGUAGE_MODEL: format})
    installed(with_cuda=False)
    (problem,) = engine_places(made, Opening(device="cuda:0"), "here")
    assert problem.message.startswith("`model`: ")
    assert problem.fix.endswith(", or give the torch model")
    with pytest.raises(UserError, match="for processors"):
        compress.load(made, device="cuda")
    installed(with_cuda=True)
    assert not list(engine_places(made, Opening(device="cuda:0"), "here"))
    assert elsewhere(format, Opening()) == ""


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    ("device", "precision", "why"),
    [
        ("cuda", "int8_dynamic", "int8_dynamic is for processors here, and the device is cuda:0"),
        ("cuda", "int4_weights", "int4_weights is for processors here, and the device is cuda:0"),
        ("cpu", "float16", "float16 is for GPUs here: on a processor it was slower than float32"),
    ],
)
def test_a_precision_without_kernels_is_refused(
    device: str, precision: str, why: str, installed: Any, tmp_path: Path
) -> None:
    installed(with_cuda=True)
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, f"build.onnxruntime: {{precision: {precision}}}", device=device)
    (problem,) = caught.value.problems
    assert problem.message == f"build.onnxruntime: {why}"
    assert "set precision to float32" in problem.fix
    planned(tmp_path, "build.onnxruntime: {precision: float32}", device=device)


def test_a_plan_for_another_machine_asks_nothing_of_what_is_installed_here(installed: Any, tmp_path: Path) -> None:
    installed(with_cuda=False)
    asked = card("RTX 4090")
    steps = ("build.gguf: {precision: int4_weights}", "build.onnxruntime: {precision: float16, id: half, from: source}")
    with gpus.supposing(gpu_of(asked)):
        found = {fit.id: fit for fit in fits(planned(tmp_path, *steps), asked)}
    assert all(fit.runs for fit in found.values())
    assert "built with CUDA" in found["build.gguf"].why
    assert found["half"].computes == "float16"
    with gpus.supposing(gpu_of(asked)):
        (narrow,) = fits(planned(tmp_path, "build.onnxruntime: {precision: int8_dynamic}", device="cpu"), asked)
    assert not narrow.runs
    assert "is for processors here" in narrow.why


@pytest.mark.usefixtures("a_gpu")
def test_a_gate_on_memory_that_torch_does_not_count_is_warned_of(installed: Any, tmp_path: Path) -> None:
    installed(with_cuda=True)
    recipe = tmp_path / "r.yaml"
    for step, warned in (("build.onnxruntime: {}", True), ("accelerate.cuda_graph: {}", False)):
        recipe.write_text(
            f"schema: 1\nname: r\nmodel: zoo://docs-llama\ndevice: cuda\nstages: [{step}]\n"
            "evaluate: {metrics: [device_memory], starts: 3}\ngates: {device_memory: {at_most: 1 GB}}\n"
        )
        found = [one for one in compress.plan(recipe, cache=tmp_path / "cache").warnings if "device_memory" in one]
        assert bool(found) == warned
        assert not found or found[0].startswith(
            "the gate on device_memory stays inconclusive: ONNX Runtime takes memory"
        )


@pytest.mark.parametrize("name", ["device_memory", "device_time"])
def test_a_gate_on_what_a_gpu_counts_is_warned_of_without_one(name: str, tmp_path: Path) -> None:
    recipe, gate = tmp_path / "r.yaml", "{at_most: 1 GB}" if name == "device_memory" else "{faster: 2}"
    recipe.write_text(
        "schema: 1\nname: r\nmodel: zoo://docs-llama\nstages: [build.onnxruntime: {}]\n"
        f"evaluate: {{metrics: [{name}], starts: 3}}\ngates: {{{name}: {gate}}}\n"
    )
    (found,) = [one for one in compress.plan(recipe, cache=tmp_path / "cache").warnings if name in one]
    assert found == f"the gate on {name} stays inconclusive: it is counted on NVIDIA GPUs, and the device is cpu"


def test_hooks_and_engines_are_no_pair_in_any_order(tmp_path: Path) -> None:
    for steps, fix in (
        (("build.onnxruntime: {}", "accelerate.compile: {}"), "leave accelerate.compile or build.onnxruntime out; or"),
        (("accelerate.compile: {}", "build.onnxruntime: {}"), "leave one of the two out"),
    ):
        with pytest.raises(RecipeError) as caught:
            planned(tmp_path, *steps, device="cpu")
        (problem,) = caught.value.problems
        assert problem.fix.startswith(fix)
        assert "leave out `model`" not in problem.fix


def test_what_no_part_has_to_do_with_is_said_once(a_gpu: None, installed: Any, tmp_path: Path) -> None:
    installed(with_cuda=False)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "schema: 1\nname: r\nmodel: zoo://digits-diffusion\ndevice: cuda\nstages: [build.onnxruntime: {}]\n"
    )
    with pytest.raises(RecipeError) as caught:
        compress.plan(recipe, cache=tmp_path / "cache")
    assert len([p for p in caught.value.problems if "for processors alone" in p.message]) == 1


def test_files_are_looked_for_where_the_library_looks(
    installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(with_cuda=False)
    assert not has_files("llama_cpp", "*ggml-cuda*", override="SOME_PATH")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "libggml-cuda.so.0").touch()
    monkeypatch.setenv("SOME_PATH", str(tmp_path / "own"))
    assert has_files("llama_cpp", "*ggml-cuda*", override="SOME_PATH")
    assert has_files("no_such_library", "*"), "that it is not installed is reported elsewhere"
