"""Packages for NVIDIA GPUs without one: what torch is asked for, what is written down, and what is refused before anything runs."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch

import compress
from compress.artifact import LANGUAGE_MODEL
from compress.building import fastest
from compress.catalogue import find_engine, find_stage
from compress.engines.compiled import PACKAGE, build, runtime
from compress.engines.compiled.build import OPTIONS, CompiledBuilder, found_toolkit
from compress.engines.language import device_inputs, step_inputs
from compress.engines.module import ENGINE
from compress.errors import ModelError, RecipeError, UserError
from compress.files.hashing import digest_file
from compress.machine import gpus
from compress.machine.devices import Opening
from compress.machine.facts import machine_fact
from compress.machine.gpus import Gpu
from compress.machine.kernels import card, gpu_of
from compress.model.describing import describe
from compress.model.exportable import Profile
from compress.opening import open_task
from compress.planning.hardware import Fit, fits
from compress.planning.step_checks import engine_places
from compress.stages.build.fastest import BuildFastest, possible
from compress.zoo import zoo_model
from tests.fakes import language_model

H100, L4 = Gpu("NVIDIA H100", "SM90"), Gpu("NVIDIA L4", "SM89")
CUDA = torch.device("cuda:0")
SETTINGS = {
    "version": torch.__version__,
    "precision": "bfloat16",
    "isa": machine_fact("isa"),
    "inputs": [],
    "outputs": [],
}


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    for header in gpus.HEADERS:
        (tmp_path / "toolkit/include" / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toolkit/include" / header).touch()
    return tmp_path / "toolkit"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, toolkit: Path) -> Callable[..., None]:
    """A machine with these GPUs, a torch that knows them, and CUDA's headers."""

    def having(*found: Gpu) -> None:
        monkeypatch.setattr(gpus, "gpus_here", lambda: found)
        monkeypatch.setattr(gpus, "torch_without_cuda", lambda: "")
        monkeypatch.setenv("CUDA_HOME", str(toolkit))

    return having


def package(folder: Path, **settings: object) -> Path:
    """A component's folder with a package of no code in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / PACKAGE, "w") as packed:
        for name in ("model.wrapper.cpp", "model.wrapper.so", "model.wrapper.json"):
            packed.writestr(f"compiled/data/aotinductor/model/{name}", "{}")
    said = {**SETTINGS, "ranges": {}, "digest": digest_file(folder / PACKAGE), **settings}
    (folder / ENGINE).write_text(json.dumps(said))
    return folder


class Loaded:
    """What stands in for torch's runner on a GPU: what it was asked for, and what lay beside its library then."""

    def __init__(self, library: str, models: int, device: str) -> None:
        self.asked = models, device
        self.beside = sorted(file.name for file in Path(library).parent.iterdir())
        self.library = Path(library)

    def run(self, values: list[torch.Tensor]) -> list[torch.Tensor]:
        return [value + 1 for value in values]


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[Loaded]:
    made: list[Loaded] = []

    def make(*asked: Any) -> Loaded:
        made.append(Loaded(*asked))
        return made[-1]

    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCuda", make, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(runtime, "_opened", {})
    return made


# ---------------------------------------------------------------- opened


def test_each_gpu_is_asked_for_its_own_library_out_of_a_folder_that_goes(
    machine: Callable[..., None], runners: list[Loaded], tmp_path: Path
) -> None:
    machine(H100, H100)
    folder = package(tmp_path / "unet", device="cuda", gpu="SM90")
    opened = [runtime.Package(folder, torch.device(where)) for where in ("cuda:0", "cuda:1", "cuda:1")]
    assert [one.asked for one in runners] == [(2, "cuda:0"), (2, "cuda:1")]  # the third shares the second's
    assert runners[0].beside == ["model.wrapper.json", "model.wrapper.so"]
    assert not runners[0].library.exists()
    assert torch.equal(opened[0]._loader.run([torch.zeros(1)])[0], torch.ones(1))


@pytest.mark.parametrize(
    ("said", "home", "message"),
    [
        ({"device": "cuda", "gpu": "SM90"}, "cpu", "compiled for the device cuda, and here is the device cpu"),
        ({}, "cuda:0", "compiled for the device cpu, and here is the device cuda"),
        ({"device": "cuda", "gpu": "SM90"}, "cuda:1", "compiled for a GPU of SM90, and here is a GPU of SM89"),
        (
            {"device": "cuda", "gpu": "SM90", "isa": "x86_64 sse4"},
            "cuda:0",
            "compiled for a processor with x86_64 sse4, and here is",
        ),
        ({"device": "cuda", "gpu": "SM90", "version": "2.1"}, "cuda:0", "compiled for torch 2.1, and here is torch 2"),
    ],
)
def test_a_package_for_elsewhere_is_not_run(
    machine: Callable[..., None], runners: list[Loaded], tmp_path: Path, said: Any, home: str, message: str
) -> None:
    machine(H100, L4)
    with pytest.raises(ModelError) as caught:
        runtime.Package(package(tmp_path / "unet", **said), torch.device(home))
    problem = caught.value.problems[0]
    assert message in problem.message
    assert problem.place == str(tmp_path / "unet")
    assert runners == []


@pytest.mark.parametrize(
    ("said", "device", "built"), [({"device": "cuda", "gpu": "SM90"}, "cpu", "cuda"), ({}, "cuda:0", "cpu")]
)
def test_an_artifact_for_the_other_kind_of_device_is_refused_when_it_is_planned_and_opened(
    machine: Callable[..., None], tmp_path: Path, said: Any, device: str, built: str
) -> None:
    machine(H100)
    package(language_model(tmp_path / "model"), **said)
    made = describe(tmp_path / "model").replacing({LANGUAGE_MODEL: "compiled"})
    (problem,) = engine_places(made, Opening(device=device), "r.yaml:3:1")
    reported = f"`{LANGUAGE_MODEL}`: it was compiled for {built}, and here is {device.partition(':')[0]}"
    assert (problem.place, problem.message) == ("r.yaml:3:1", reported)
    for opened in (lambda: compress.load(made, device=device), lambda: open_task(made, Opening(device=device))):
        with pytest.raises(UserError, match=reported):
            opened()
    assert not list(engine_places(made, Opening(device="cuda:0" if built == "cuda" else "cpu"), ""))


@pytest.mark.parametrize(
    ("said", "reported"),
    [
        ({"gpu": "SM80"}, "for a GPU of SM80, and here is a GPU of SM90"),
        ({"version": "2.4.0"}, f"for torch 2.4.0, and here is torch {torch.__version__.partition('+')[0]}"),
        ({"isa": "x86_64 avx"}, "for a processor with x86_64 avx, and here is a processor with x86_64"),
    ],
)
def test_another_gpu_torch_or_processor_is_told_by_a_plan(
    machine: Callable[..., None], tmp_path: Path, said: Any, reported: str
) -> None:
    machine(H100)
    package(language_model(tmp_path / "model"), **{"device": "cuda", "gpu": "SM90", **said})
    made = describe(tmp_path / "model").replacing({LANGUAGE_MODEL: "compiled"})
    (problem,) = engine_places(made, Opening(device="cuda:0"), "")
    assert reported in problem.message


def test_a_steps_inputs_made_on_a_device_are_those_made_of_arrays() -> None:
    names = ("input_ids", "position_ids", "cache_position", "attention_mask", "past_key_values.0")
    for batch, seen in ((1, 0), (3, 5)):
        tokens = torch.arange(2 * batch).reshape(batch, 2)
        theirs = step_inputs(tokens.numpy(), seen, names)
        ours = device_inputs(tokens, seen, names, torch.device("cpu"))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.is_contiguous()
            assert value.dtype == torch.int64
            assert torch.equal(value, torch.from_numpy(theirs[name]))


def test_caches_stay_where_they_are_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` has no numbers: whatever came back to the processor on the way would fail."""
    home = torch.device("meta")
    monkeypatch.setattr(
        runtime.Cached, "_known", lambda self, tokens, seen: device_inputs(tokens, seen, self._names, home)
    )
    cache = runtime.Port("past_key_values.0", torch.bfloat16, ("s0", 2, "s1", 4))
    ids = runtime.Port("input_ids", torch.int64, ("s0", "s2"))
    width = runtime.Port("past_key_values.1", torch.int64, (), 7)

    def call(values: list[torch.Tensor]) -> list[torch.Tensor]:
        tokens, keys, number = values
        grown = torch.cat([keys, keys.new_empty(keys.shape[0], 2, tokens.shape[1], 4)], 2)
        return [torch.empty(*tokens.shape, 9, dtype=torch.bfloat16, device=home), grown, number]

    decoder = runtime.Cached(cast("Any", SimpleNamespace(ports=(ids, cache, width), home=home, call=call)))
    past = decoder.begin(3)
    for count in (5, 1):
        logits = decoder.step(torch.zeros(3, count, dtype=torch.int64, device=home), past)
        past.seen += count
        assert (logits.shape, logits.dtype, logits.device.type) == ((3, count, 9), torch.float32, "meta")
    assert [(t.shape, t.dtype, t.device.type) for t in past.tensors] == [((3, 2, 6, 4), torch.bfloat16, "meta")]


# ---------------------------------------------------------------- built


def built(folder: Path, monkeypatch: pytest.MonkeyPatch, known: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What a package for a GPU is compiled with, and the surroundings."""
    seen: dict[str, Any] = {}
    around: dict[str, str] = {}

    def compile_it(program: object, package_path: str, inductor_configs: dict[str, Any]) -> None:
        seen.update(inductor_configs)
        around.update(os.environ)
        Path(package_path).write_bytes(b"package")

    monkeypatch.setattr(build, "aoti_compile_and_package", compile_it)
    monkeypatch.setattr(build, "list_options", lambda: known)
    builder = CompiledBuilder("bfloat16", Profile(), folder / "scratch")
    builder.home = CUDA
    folder.mkdir()
    builder._write(cast("Any", None), folder, (), ("sample",), {}, function="forward")
    return seen, around


def test_kernels_and_weights_lie_in_the_library_and_the_record_says_which_gpu(
    machine: Callable[..., None], toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(H100)
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    options, around = built(tmp_path / "unet", monkeypatch, [*OPTIONS["cuda"]])
    assert options == OPTIONS["cuda"]
    assert options["aot_inductor.embed_kernel_binary"]
    assert "freezing" not in options
    assert around["CUDA_HOME"] == str(toolkit)
    assert around["LIBRARY_PATH"] == str(tmp_path / "unet/scratch/driver")
    assert "LIBRARY_PATH" not in os.environ
    said = json.loads((tmp_path / "unet" / ENGINE).read_text())
    assert {said[name] for name in ("device", "gpu", "isa")} == {"cuda", "SM90", machine_fact("isa")}


def test_an_option_that_this_torch_does_not_know_is_left_out(
    machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(H100)
    options, _ = built(tmp_path / "unet", monkeypatch, [])
    assert options == {name: value for name, value in OPTIONS["cuda"].items() if name != build.LINES}  # of torch 2.11


def test_of_the_compilers_options_torch_knows_all() -> None:
    from torch._inductor import list_options

    assert {*OPTIONS["cpu"], *OPTIONS["cuda"]} <= set(list_options())


def test_the_linker_is_shown_the_driver_that_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcuda.so.580").touch()
    monkeypatch.setattr(build, "_loaded", lambda name: str(tmp_path / f"{name}.580"))
    monkeypatch.setenv("LIBRARY_PATH", "/theirs")
    for _ in range(2):  # a run that was cut off left a link behind
        with found_toolkit(tmp_path / "scratch"):
            first, _, rest = os.environ["LIBRARY_PATH"].partition(os.pathsep)
            assert (Path(first) / "libcuda.so").resolve() == tmp_path / "libcuda.so.580"
            assert rest == "/theirs"
    assert os.environ["LIBRARY_PATH"] == "/theirs"
    monkeypatch.undo()
    assert Path(build._loaded("libc.so")).is_file()
    assert build._loaded("libno-such") == ""


def test_an_older_exporter_gives_the_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        def export(self, *given: object) -> str:
            return "program"

    monkeypatch.setattr(build, "DynamoExporter", Older)
    assert build._exported(torch.nn.Identity(), {}) == cast("Any", "program")


def test_a_toolkit_is_found_behind_a_script_that_calls_its_compiler(
    toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "bin/nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    monkeypatch.setenv("CUDA_PATH", str(toolkit))
    assert gpus.toolkit() == toolkit
    assert gpus.without_toolkit() == ""
    monkeypatch.setattr(gpus, "HEADERS", ("no_such.h",))
    assert gpus.toolkit() is None
    assert gpus.without_toolkit().startswith("this machine has no CUDA toolkit")
    with gpus.supposing(H100):
        assert gpus.without_toolkit() == ""


# ---------------------------------------------------------------- planned


def planned(folder: Path, *steps: str, device: str = "cuda") -> compress.Plan:
    text = f"schema: 1\nname: r\nmodel: {zoo_model('docs-llama')}\ndevice: {device}\nstages:\n"
    (folder / "r.yaml").write_text(text + "".join(f"  - {step}\n" for step in steps))
    return compress.plan(folder / "r.yaml", cache=folder / "cache")


def refused(folder: Path, *steps: str, device: str = "cuda") -> str:
    with pytest.raises(RecipeError) as caught:
        planned(folder, *steps, device=device)
    (problem,) = caught.value.problems
    assert problem.place.startswith(str(folder / "r.yaml"))
    return problem.message


def test_a_recipe_on_a_gpu_plans_it_under_a_key_of_the_gpus_own(machine: Callable[..., None], tmp_path: Path) -> None:
    keys = set()
    for found in (H100, L4):
        machine(found)
        keys.add(planned(tmp_path, "build.compiled: {precision: float16}").nodes[0].key)
        keys.add(planned(tmp_path, "build.compiled: {precision: bfloat16}").nodes[0].key)
    keys.add(planned(tmp_path, "build.compiled: {precision: bfloat16}", device="cpu").nodes[0].key)
    assert len(keys) == 5


def test_what_cannot_be_compiled_is_refused_when_it_is_planned(
    machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(H100)
    half = refused(tmp_path, "build.compiled: {precision: float16}", device="cpu")
    assert half == "build.compiled: float16 is for GPUs here"
    for hook in ("accelerate.cuda_graph", "accelerate.compile"):
        assert "the engine that build.compiled makes has none" in refused(
            tmp_path, f"{hook}: {{}}", "build.compiled: {}"
        )
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler `no-such-compiler`" in refused(tmp_path, "build.compiled: {}")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(gpus, "toolkit", lambda: None)
    assert "no CUDA toolkit" in refused(tmp_path, "build.compiled: {}")
    assert "no CUDA toolkit" in find_stage("build.compiled").machine()
    machine()
    monkeypatch.setattr(gpus, "gpus_here", lambda: ())
    assert "no CUDA toolkit" not in find_stage("build.compiled").machine()
    monkeypatch.setattr(gpus, "toolkit", lambda: tmp_path)
    assert refused(tmp_path, "build.compiled: {}") == "device: cuda, and nvidia-smi finds no NVIDIA GPU here"


def worth(gpu: str, folder: Path, precision: str, device: str) -> Fit:
    asked = card(gpu)
    with gpus.supposing(gpu_of(asked)):
        return fits(planned(folder, f"build.compiled: {{precision: {precision}}}", device=device), asked)[0]


def test_what_it_is_worth_on_a_gpu_goes_with_the_device_of_the_run(tmp_path: Path) -> None:
    hopper = worth("H100", tmp_path, "bfloat16", "cuda")
    assert (hopper.runs, hopper.computes, hopper.why) == (True, "bfloat16", "")
    assert "emulated" in worth("T4", tmp_path, "bfloat16", "cuda").why
    here = worth("H100", tmp_path, "bfloat16", "cpu")
    assert (here.runs, here.why) == (False, "it is compiled for the device of the run, here cpu: device: cuda")


# ---------------------------------------------------------------- chosen


def test_a_choice_on_a_gpu_tries_it_where_it_can_be_built(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(H100)
    model = describe(zoo_model("docs-llama"))

    def why(precision: str, device: str) -> str:
        params = BuildFastest(engines=("compiled",), precisions=(precision,))
        ((_, _, found),) = possible(model, params, "model", device)
        return found

    assert why("bfloat16", "cuda:0") == ""
    monkeypatch.setattr(gpus, "toolkit", lambda: None)
    assert "no CUDA toolkit" in why("float32", "cuda:0")
    assert "float16 is for GPUs" in why("float16", "cpu")
    assert "cuda" in find_engine("compiled").devices


def test_a_timed_call_ends_when_its_device_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = mock.Mock()
    watch.call.return_value = "found"
    monkeypatch.setattr(fastest, "finish", watch.finish)
    assert fastest._made(CUDA, watch.call) == "found"
    assert watch.mock_calls == [mock.call.call(), mock.call.finish(CUDA)]
