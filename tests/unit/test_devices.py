"""Which device a recipe's word means on this machine, known without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compress.errors import UserError
from compress.machine import devices
from compress.machine.devices import AS_STORED, Opening, kind_of, settled
from compress.machine.gpus import Gpu

TWO = (Gpu("Some GPU", "SM89"), Gpu("Other GPU", "SM86"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> object:
    def make(gpus: tuple[Gpu, ...] = (), torch: str = "", mac: bool = False) -> None:
        monkeypatch.setattr("compress.machine.gpus.gpus_here", lambda: gpus)
        monkeypatch.setattr("compress.machine.gpus.torch_without_cuda", lambda: torch)
        monkeypatch.setattr(devices.sys, "platform", "darwin" if mac else "linux")
        monkeypatch.setattr(devices.platform, "machine", lambda: "arm64" if mac else "x86_64")

    return make


def why(device: str) -> str:
    with pytest.raises(UserError) as caught:
        settled(device)
    (problem,) = caught.value.problems
    assert problem.fix
    return problem.message


def test_a_processor_is_always_there(machine: object) -> None:
    machine()  # type: ignore[operator]
    assert settled("cpu") == settled("auto") == "cpu"


def test_one_device_has_one_spelling(machine: object) -> None:
    machine(TWO)  # type: ignore[operator]
    assert settled("cuda") == settled("cuda:0") == settled("auto") == "cuda:0"
    assert settled("cuda:1") == "cuda:1"
    assert [kind_of(device) for device in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda", "mps"]


def test_without_a_gpu_it_is_message_what_was_looked_for(machine: object) -> None:
    machine()  # type: ignore[operator]
    assert why("cuda") == "device: cuda, and nvidia-smi finds no NVIDIA GPU here"


def test_of_too_few_gpus_those_that_there_are_are_named(machine: object) -> None:
    machine(TWO)  # type: ignore[operator]
    assert why("cuda:2") == "device: cuda:2, and nvidia-smi finds 2 here, Some GPU, Other GPU"


def test_a_torch_for_processors_alone_is_named_beside_the_gpu(machine: object) -> None:
    machine(TWO, torch="2.13.0+cpu")  # type: ignore[operator]
    assert why("cuda") == "device: cuda, and torch 2.13.0+cpu is built without CUDA, beside Some GPU"
    assert settled("auto") == "cpu"


def test_apples_processors_have_mps_and_no_others(machine: object) -> None:
    machine(mac=True)  # type: ignore[operator]
    assert settled("mps") == settled("auto") == "mps"
    machine()  # type: ignore[operator]
    assert "only Apple's own processors have it" in why("mps")


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "CPU", "cpu:0", "cuda:100"])
def test_what_is_no_device_is_refused(device: str) -> None:
    assert why(device) == f"`{device}` is no device"


def test_a_key_tells_of_a_device_only_where_it_is_not_as_it_always_was() -> None:
    assert AS_STORED.counted == Opening("bfloat16").counted == {}
    assert Opening(device="cuda:0").counted == {"device": "cuda:0"}
    assert Opening(trust_remote_code=True).counted == {"trust_remote_code": True}
    assert Opening("float32", "cuda:1").of(None) == Opening(None, "cuda:1")


def test_a_key_tells_which_generation_of_gpu_rounded(machine: object) -> None:
    machine(TWO)  # type: ignore[operator]
    assert Opening(device="cuda:0").counted == {"device": "cuda:0", "gpu": "SM89"}
    assert Opening(device="cuda:1").counted == {"device": "cuda:1", "gpu": "SM86"}
    assert Opening(device="mps").counted == {"device": "mps"}


def test_asking_for_a_device_imports_no_torch() -> None:
    code = "import sys; from compress.machine.devices import settled; settled('auto'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
