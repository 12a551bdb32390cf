"""A fault at each layer is reported as that layer's, and its remedy works when it is followed."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.errors import PareError, Problem
from compress.execution import blame
from tests.fakes import CUT, knowing
from tests.tiny import tiny_llama
from tests.unit.test_execute import copying

STAGES = "[prune.width: {ratio: 0.5}]"
RECIPE = """schema: 1
name: r
model: ./model
data: {{evaluate: texts.txt}}
stages: {stages}
evaluate: {{metrics: [size]}}
"""


@dataclass(frozen=True)
class Place:
    """A recipe with its model and its texts."""

    root: Path

    @property
    def weights(self) -> Path:
        return self.root / "model" / "model.safetensors"

    def run(self) -> Any:
        return compress.run(self.root / "r.yaml", cache=self.root / "cache", out=self.root / "out")

    def write(self, stages: str = STAGES) -> None:
        (self.root / "r.yaml").write_text(RECIPE.format(stages=stages))

    def first(self) -> Problem:
        """What running it says."""
        with pytest.raises(PareError) as caught:
            self.run()
        return caught.value.problems[0]


@pytest.fixture
def place(tmp_path: Path, reloading: None) -> Place:
    found = Place(tmp_path)
    tiny_llama(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    found.write()
    return found


def test_without_a_fault_it_runs(place: Place) -> None:
    assert place.run().rows


# The model


def truncate(place: Place) -> Callable[[], object]:
    whole = place.weights.read_bytes()
    place.weights.write_bytes(whole[:-100])
    return lambda: place.weights.write_bytes(whole)  # "fetch or save it again"


def hide(place: Place) -> Callable[[], object]:
    moved = place.weights.rename(place.root / "away")
    return lambda: moved.rename(place.weights)


def spoil(place: Place) -> Callable[[], object]:
    """A weight that is no number: JSON and headers do not tell."""
    whole, tensors = place.weights.read_bytes(), load_file(place.weights)
    tensors["model.layers.0.mlp.up_proj.weight"][:] = torch.nan
    save_file(tensors, place.weights, metadata={"format": "pt"})
    return lambda: place.weights.write_bytes(whole)


def blow_up(place: Place) -> Callable[[], object]:
    """Weights that are numbers, of which no finite value comes."""
    whole, tensors = place.weights.read_bytes(), load_file(place.weights)
    for name in ("lm_head.weight", "model.norm.weight"):
        tensors[name][:] = 3e38
    save_file(tensors, place.weights, metadata={"format": "pt"})
    return lambda: place.weights.write_bytes(whole)


def garble(place: Place) -> Callable[[], object]:
    config = place.root / "model" / "config.json"
    whole = config.read_bytes()
    config.write_bytes(whole[:20])
    return lambda: config.write_bytes(whole)


@pytest.mark.parametrize("fault", [truncate, hide, spoil, blow_up, garble])
def test_a_fault_of_the_model_is_reported_as_the_models(
    fault: Callable[[Place], Callable[[], object]], place: Place
) -> None:
    mend = fault(place)
    problem = place.first()
    reported = f"{problem.place} {problem.message}"
    assert str(place.root / "model") in reported or "`model`" in reported
    assert "contract" not in reported
    assert "report" not in problem.fix
    assert any(word in problem.fix for word in ("save", "give", "fetch"))
    mend()
    assert place.run().rows


# The recipe


@pytest.mark.parametrize(
    ("wrong", "column", "right"),
    [
        ("[quantize.nncf: {mode: int8_weights}]", 10, "[build.openvino: {}, quantize.nncf: {mode: int8_weights}]"),
        ("[prune.width: {ratio: 1.5}]", 23, STAGES),
        ("[prune.wid: {ratio: 0.5}]", 10, STAGES),
    ],
)
def test_a_fault_of_the_recipe_is_reported_at_its_line(wrong: str, column: int, right: str, place: Place) -> None:
    place.write(wrong)
    problem = place.first()
    assert problem.place.startswith(f"{place.root / 'r.yaml'}:5:")
    assert problem.fix
    place.write(right)
    assert place.run().rows


# The data


def test_a_fault_of_the_data_is_reported_at_its_line_and_the_command_mends_it(place: Place) -> None:
    (place.root / "texts.txt").write_bytes("one\n\ncafé\n".encode("latin-1"))
    problem = place.first()
    assert f"{place.root / 'texts.txt'}:3" in f"{problem.place} {problem.message}"
    command = problem.fix.partition(", if")[0]
    assert shlex.split(command)[0] == "iconv"
    subprocess.run(command, shell=True, check=True, cwd=place.root)
    (place.root / "r.yaml").write_text(RECIPE.format(stages=STAGES).replace("texts.txt", "texts-utf8.txt"))
    assert place.run().rows


# A library


def test_a_library_that_lacks_is_reported_with_the_command_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.machine import deps

    real = deps.version
    with monkeypatch.context() as without:
        without.setattr(deps, "version", lambda name: "" if name == "torch_pruning" else real(name))
        problem = place.first()
    assert "needs the library torch_pruning" in problem.message
    assert problem.fix == "pip install torch_pruning"
    assert place.run().rows


def test_what_a_library_raises_names_it_with_its_version(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_pruning

    with monkeypatch.context() as broken:
        broken.setattr(torch_pruning.DependencyGraph, "_trace", None)
        problem = place.first()
    assert problem.place.endswith("r.yaml:5:10")
    assert "failed: TypeError" in problem.message
    assert problem.fix.startswith(f"it came out of torch-pruning {version('torch-pruning')}")
    assert place.run().rows  # "run the same command again once the cause is gone"


# Pare itself


def test_a_stage_that_breaks_its_contract_is_pares_own_fault(place: Place) -> None:
    place.write("[demo.cut: {}]")
    with knowing(replace(CUT, run=copying)):
        problem = place.first()
    assert "broke its contract" in problem.message
    assert "report it" in problem.fix


def test_what_pares_own_code_raises_is_pares_own_fault(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("compress.algorithms.weight_importance.magnitude", None)
        problem = place.first()
    assert "failed: TypeError" in problem.message
    assert problem.fix.startswith("this is a fault of pare: please report it")
    assert place.run().rows


# The machine


def test_too_little_memory_is_reported_as_that() -> None:
    message = (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    )
    for error in (MemoryError(), RuntimeError(message), RuntimeError("std::bad_alloc")):
        assert "too little memory" in blame.remedy(error)
    assert blame.remedy(RuntimeError("out of luck")) == blame.AGAIN


def test_a_full_gpu_is_told_with_its_numbers() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 1.25 GiB is free. Process 7 has 77 GiB "
        "memory in use. Of the allocated memory 70.5 GiB is allocated by PyTorch. See documentation for Memory Management"
    )
    error = torch.OutOfMemoryError(message)
    assert (
        blame.cause(error)
        == "GPU 0 has no memory left: 2.00 GiB more were asked for, and 1.25 GiB of its 79.18 GiB were free"
    )
    assert "smaller batch" in blame.remedy(error)
    assert blame.cause(RuntimeError("out of luck")) == "RuntimeError: out of luck"


# What raised it


def raised(*modules: str, error: str = "ValueError") -> BaseException:
    """An error that went through these modules, the last of them raising it."""
    code = f"raise {error}"
    for module in reversed(modules[1:]):
        code = f"exec({code!r}, {{'__name__': {module!r}}})"
    try:
        exec(compile(code, "x", "exec"), {"__name__": modules[0]})
    except Exception as caught:
        return caught
    raise AssertionError


@pytest.mark.parametrize(
    ("found", "who"),
    [
        (raised("compress.demo"), "pare"),
        (raised("evaluation.demo", error="KeyError('x')"), "pare"),
        (raised("compress.demo", "safetensors.torch"), "safetensors"),
        (raised("compress.demo", "concurrent.futures.thread", "transformers.x"), "transformers"),
        (raised("compress.demo", "transformers.x", "transformers_modules.own.modeling"), "the model's own Python code"),
        (raised("compress.demo", "torch.nn", "compress.other"), "pare"),
        # Compiled code leaves no frame: its own classes tell, others do not.
        (raised("compress.demo", error="__import__('safetensors').SafetensorError('broken')"), "safetensors"),
        (raised("compress.demo", error="RuntimeError('shapes')"), ""),
        (raised("compress.demo", error="FileNotFoundError('x')"), ""),
        (raised("other"), ""),
    ],
)
def test_who_raised_it_is_reported_by_its_frames_and_its_class(found: BaseException, who: str) -> None:
    assert blame.raised_by(found).partition(" 0")[0].partition(" 2")[0].partition(" 5")[0] == who
    assert ("fault of pare" in blame.remedy(found)) == (who == "pare")


# The evaluation


def test_what_is_raised_while_measuring_is_blamed_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("[]")
    with monkeypatch.context() as broken:
        broken.setattr("evaluation.comparison.compare.collect", None)
        problem = place.first()
    assert problem.message.startswith("the evaluation failed: TypeError: ")
    assert problem.fix.startswith("this is a fault of pare: please report it")
    assert "Traceback" in (place.root / "out/events.jsonl").read_text()
    assert place.run().rows
