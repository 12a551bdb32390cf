"""Where models run: what a recipe, an option or an argument may say, and what is stated where this machine has no such device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import compress
from compress.artifact import LANGUAGE_MODEL
from compress.catalogue import builders, engine_names, find_engine
from compress.cli import main
from compress.errors import PareError, RecipeError, UserError
from compress.machine import devices, gpus
from compress.machine.devices import Opening, settled
from compress.machine.gpus import Gpu
from compress.model.describing import describe
from compress.planning.step_checks import engine_places
from compress.stages.build.fastest import BuildFastest, possible
from compress.zoo import zoo_model
from tests.fakes import language_model

L4 = Gpu("NVIDIA L4", "SM89")
NONE_HERE = "device: cuda, and nvidia-smi finds no NVIDIA GPU here"
ON_THE_PROCESSOR = [name for name in engine_names() if find_engine(name).devices == {"cpu"}]
RECIPE = "schema: 1\nname: tiny\nmodel: ./model\n{device}evaluate: {{metrics: [size]}}\n"
VERBS = ("check", "plan", "run", "eval")


def machine(patch: pytest.MonkeyPatch, *found: Gpu, torch: str = "") -> None:
    """A machine with these GPUs. torch: the version of one that is built without CUDA."""
    patch.setattr(gpus, "gpus_here", lambda: found)
    patch.setattr(gpus, "torch_without_cuda", lambda: torch)
    patch.setattr(devices, "_no_mps", lambda: "no mps")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    language_model(tmp_path / "model")
    (tmp_path / "r.yaml").write_text(RECIPE.format(device=""))
    (tmp_path / "cuda.yaml").write_text(RECIPE.format(device="device: cuda\n"))
    return tmp_path


def pare(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


def arguments(verb: str, recipe: str = "r.yaml") -> tuple[str, ...]:
    return ("eval", "./model", "./model", "--metrics", "size") if verb == "eval" else (verb, recipe)


# ---------------------------------------------------------------- what is there


@pytest.mark.parametrize(
    ("word", "device"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("auto", "cuda:0")]
)
def test_a_word_becomes_one_spelling_of_the_device(word: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, L4, L4)
    assert settled(word) == device


@pytest.mark.parametrize(
    ("word", "found", "torch", "reported"),
    [
        ("cuda", (), "", NONE_HERE),
        ("cuda:1", (L4,), "", "device: cuda:1, and nvidia-smi finds 1 here, NVIDIA L4"),
        ("cuda", (L4,), "2.13.0+cpu", "device: cuda, and torch 2.13.0+cpu is built without CUDA, beside NVIDIA L4"),
        ("mps", (), "", "device: mps, and no mps"),
        ("gpu", (), "", "`gpu` is no device"),
        ("cuda:x", (L4,), "", "`cuda:x` is no device"),
    ],
)
def test_a_device_that_is_not_here_is_reported_with_what_is(
    word: str, found: tuple[Gpu, ...], torch: str, reported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, *found, torch=torch)
    with pytest.raises(UserError) as caught:
        settled(word)
    assert [p.message for p in caught.value.problems] == [reported]
    assert "cpu" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("named", "left"),
    [
        (None, "abc"),
        ("", ""),
        ("-1", ""),
        ("2, 0", "ca"),
        ("1,7,0", "b"),
        ("NoDevFiles", ""),
        ("GPU-5f3e,GPU-77aa", "ab"),
    ],
)
def test_a_hidden_gpu_is_not_here(named: str | None, left: str) -> None:
    found = tuple(Gpu(name, "SM90") for name in "abc")
    assert "".join(gpu.name for gpu in gpus.visible(found, named)) == left


def test_a_plan_says_what_auto_has_become(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device, words in (("auto", "text_generation, on cpu, the best there is here"), ("cpu", "text_generation")):
        machine(monkeypatch)
        plan = compress.plan("r.yaml", [f"device={device}"])
        assert compress.text(plan).splitlines()[0].endswith(words)


def test_auto_is_the_processor_where_there_is_nothing_better(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert settled("auto") == "cpu"


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_every_verb_runs_on_the_processor(
    verb: str, device: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    assert pare(*arguments(verb), "--device", device) in (0, 4)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_in_one_error_that_there_is_no_gpu(
    verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch)
    assert pare(*arguments(verb), "--device", "cuda") == 2
    message = capsys.readouterr()
    place, fix = "", "device: cpu, or auto for the best there is"
    if verb != "eval":  # of a recipe
        place, fix = "--set device: ", f"{fix}; `pare plan RECIPE --for H100` plans for a GPU elsewhere"
    assert (message.out, message.err) == ("", f"{place}{NONE_HERE}\n  fix: {fix}\n")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("verb", ["check", "plan", "run"])
def test_a_recipe_s_device_is_reported_with_its_line_and_the_option_wins_over_it(
    verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch)
    assert pare(*arguments(verb, "cuda.yaml")) == 2
    assert capsys.readouterr().err.startswith(f"cuda.yaml:4:9: {NONE_HERE}\n")
    assert pare(*arguments(verb, "cuda.yaml"), "--device", "cpu") in (0, 4)


# ---------------------------------------------------------------- Python


@pytest.mark.parametrize(
    "call",
    [
        lambda: compress.plan("r.yaml", ["device=cuda"]),
        lambda: compress.run("r.yaml", ["device=cuda"]),
        lambda: compress.apply("prune.width", zoo_model("docs-llama"), device="cuda"),
        lambda: compress.load("./model", device="cuda"),
        lambda: compress.evaluate("./model", "./model", metrics=["size"], device="cuda"),
    ],
)
def test_every_call_tells_that_there_is_no_gpu(
    call: Callable[[], Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    with pytest.raises(PareError) as caught:
        call()
    assert [p.message for p in caught.value.problems if "device" in p.message] == [NONE_HERE]
    assert caught.value.exit_code == 2


def test_load_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert compress.load(zoo_model("docs-llama"), device="auto").device.type == "cpu"


@pytest.mark.parametrize("call", ["run", "evaluate"])
def test_both_sides_are_measured_where_it_was_asked(call: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, L4, L4)
    with mock.patch("compress.commands.evaluate.measure") as measure:
        if call == "run":
            compress.run("r.yaml", ["device=cuda:1"])
        else:
            compress.evaluate("./model", "./model", metrics=["size"], device="cuda:1")
    assert measure.call_args.args[0].opening == Opening(device="cuda:1")


def test_apply_plans_for_the_device_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, L4)
    with mock.patch("compress.execution.execute.execute") as execute:
        compress.apply("prune.width", str(zoo_model("docs-llama")), cache=tmp_path, device="cuda")
    assert execute.call_args.args[0].opening == Opening(device="cuda:0")


# ---------------------------------------------------------------- engines of the processor


def test_there_are_engines_of_the_processor() -> None:
    assert "openvino" in ON_THE_PROCESSOR


@pytest.mark.parametrize("name", ON_THE_PROCESSOR)
def test_a_recipe_on_a_gpu_refuses_to_build_an_engine_of_the_processor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, L4)
    (stage,) = (s for s in builders() if s.leaves("torch") == name)
    (tmp_path / "r.yaml").write_text(
        f"schema: 1\nname: r\nmodel: zoo://docs-llama\ndevice: cuda\nstages:\n  - {stage.name}: {{}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    reported = f"{stage.name}: {find_engine(name).title} runs on cpu, and the device is cuda:0"
    assert [(p.place, p.message) for p in caught.value.problems if "runs on" in p.message] == [
        (f"{tmp_path / 'r.yaml'}:6:5", reported)
    ]


def test_a_choice_among_engines_of_the_processor_is_refused_and_tries_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, L4)
    text = "schema: 1\nname: r\nmodel: zoo://docs-llama\ndevice: cuda\nstages:\n  - build.fastest: {engines: [openvino, onnxruntime], hooks: []}\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    onnx = "onnxruntime is the one for processors alone here, and the device is cuda:0"
    reported = f"{onnx}; OpenVINO runs on cpu, and the device is cuda:0"
    assert f"build.fastest: {reported}" in [p.message for p in caught.value.problems]
    (tmp_path / "r.yaml").write_text(text.replace(", hooks: []", ""))
    compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")  # torch with hooks is left to try
    found, params = describe(zoo_model("docs-llama")), BuildFastest(engines=("openvino",), precisions=("float32",))
    ((_, _, there),) = possible(found, params, LANGUAGE_MODEL, "cuda:0")
    ((_, _, here),) = possible(found, params, LANGUAGE_MODEL, "cpu")
    assert (there, here) == (reported.partition("; ")[2], "")


@pytest.mark.parametrize("name", ON_THE_PROCESSOR)
def test_a_model_that_is_one_already_is_refused_before_anything_is_loaded(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, L4)
    made = describe(folder / "model").replacing({LANGUAGE_MODEL: name})
    title = find_engine(name).title
    reported = f"`{LANGUAGE_MODEL}`: {title} runs on cpu, and the device is cuda:0"
    assert [p.message for p in engine_places(made, Opening(device="cuda:0"), "")] == [reported]
    assert not list(engine_places(made, Opening(), ""))
    with pytest.raises(UserError) as caught:
        compress.load(made, device="cuda")
    assert [p.message for p in caught.value.problems] == [reported]
    with mock.patch("compress.commands.sides._sides", return_value=[made, made]), pytest.raises(UserError) as caught:
        compress.evaluate("one", "other", metrics=["size"], device="cuda")
    assert {p.message for p in caught.value.problems} == {reported}
