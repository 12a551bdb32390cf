"""A GPU's ceilings, clocks and what slows it, by an NVML and events made for the test; and that a slowed one proves no speed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compress.events import Event, silent
from evaluation.observe import gpu_cards, hardware
from evaluation.observe.gpu_cards import State
from evaluation.observe.timing import time_pair
from evaluation.report import formatting
from tests.unit.comparisons import text

UUID = "1c3f5ac8-0000-4000-8000-000000000001"
COOL = State(1980, 2619, 91.5, 41)
HOT = State(1410, 2619, 699.0, 88, ("heat, by its hardware",))


class FakeNVML(ModuleType):
    """One card of which all is known, under the names of today or of before."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, reasons: int, *, newer: bool = True) -> None:
        super().__init__("pynvml")
        name = "nvmlDeviceGetCurrentClocksEventReasons" if newer else "nvmlDeviceGetCurrentClocksThrottleReasons"
        setattr(self, name, lambda card: reasons)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != f"GPU-{UUID}":
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetClockInfo(self, card: str, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:
        return 91_500

    def nvmlDeviceGetTemperature(self, card: str, kind: int) -> int:
        return 41


class FakeEvent:
    """Two of them lie two milliseconds apart."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def elapsed_time(self, other: FakeEvent) -> float:
        return 2.0


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU that torch knows; its tensors lie on the processor."""
    found = SimpleNamespace(name="Some GPU", major=9, minor=0, total_memory=80e9, uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (64 * 2**20, int(80e9)))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(gpu_cards, "SECONDS", 0.01)
    return found


def test_ceilings_count_bytes_read_and_written_and_two_operations_a_product(
    card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("randint", "randn"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, real=real, **given: real(*args, **{**given, "device": "cpu"}))
    found = gpu_cards.facts("cuda:0", copied=2**20, wide=64)
    assert (found["gpu"], found["gpu_capability"], found["gpu_memory_gb"]) == ("Some GPU", "SM90", 80.0)
    assert found["gpu_copy_gb_s"] == pytest.approx(2 * 2**20 / 2e-3 / 1e9, abs=0.05)
    assert gpu_cards._multiplying("cuda:0", 64) == pytest.approx(2 * 64**3 / 2e-3 / 1e12)
    assert found["gpu_float32"] == "products highest, convolutions tf32"


def test_what_is_copied_and_multiplied_fits_an_eighth_of_the_free_memory(
    card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}
    monkeypatch.setattr(gpu_cards, "_copying", lambda device, size: float(asked.setdefault("bytes", size)))
    monkeypatch.setattr(gpu_cards, "_multiplying", lambda device, size: float(asked.setdefault("rows", size)))
    gpu_cards.facts("cuda:0")
    assert 2 * asked["bytes"] * 8 <= 64 * 2**20 < 4 * asked["bytes"] * 8
    assert 6 * asked["rows"] ** 2 * 8 <= 64 * 2**20


def test_a_processor_is_no_card() -> None:
    assert gpu_cards.facts("cpu") == {}
    assert gpu_cards.state("cpu") is None
    assert "gpu_capability" not in hardware.facts()


@pytest.mark.parametrize("newer", [True, False])
def test_the_state_is_that_of_the_card_by_its_uuid(
    card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    monkeypatch.setitem(
        sys.modules, "pynvml", FakeNVML(0x01 | 0x02, newer=newer)
    )  # unavailable, and a clock that was set
    assert gpu_cards.state("cuda:0") == COOL
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML(0x04 | 0x40, newer=newer))
    found = gpu_cards.state("cuda:0")
    assert found is not None
    assert found.slowed_by == ("its power limit", "heat, by its hardware")
    card.uuid = "another"
    assert gpu_cards.state("cuda:0") is None


def test_without_nvml_nothing_is_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_cards.state("cuda:0") is None
    assert (gpu_cards.slowed(None, None), gpu_cards.clocks(COOL, None)) == ("", {})


def test_clocks_are_reported_and_what_slowed_them() -> None:
    assert gpu_cards.slowed(COOL, COOL) == ""
    assert gpu_cards.slowed(COOL, HOT).startswith(
        "the GPU was slowed after at 1410 MHz by heat, by its hardware: measure"
    )
    assert gpu_cards.clocks(COOL, HOT) == {
        "gpu_before_and_after": ["1980 MHz, 92 W, 41 °C", "1410 MHz, 699 W, 88 °C"],
        "gpu_slowed_by": ["heat, by its hardware"],
    }


@pytest.mark.parametrize("after", [COOL, HOT])
def test_a_slowed_gpu_settles_no_speed(monkeypatch: pytest.MonkeyPatch, after: State) -> None:
    monkeypatch.setattr("compress.machine.turns.identity", str)
    monkeypatch.setattr("evaluation.observe.contention.share_of_others", lambda *readings: None)
    states, asked = iter((COOL, after)), list[str]()
    monkeypatch.setattr(gpu_cards, "state", lambda device: asked.append(device) or next(states))
    recorded: list[Event] = []

    def call(seconds: float) -> Any:
        return lambda: (seconds, 0.0)

    found = time_pair(
        call(0.4), call(0.1), (20, 8), 1, 20, 0, recorded.append if after is HOT else silent, device="cuda:0"
    )
    assert asked == ["cuda:0", "cuda:0"]
    assert ("slowed" in found.unsettled) == (after is HOT) == any("slowed" in event.message for event in recorded)
    assert found.card["gpu_slowed_by"] == list(after.slowed_by)
    assert np.allclose(found.baseline.seconds / found.candidate.seconds, 4)


def test_the_report_names_the_card_and_its_ceilings() -> None:
    from dataclasses import replace

    facts = {
        "gpu": "Some GPU",
        "gpu_copy_gb_s": 4300.1,
        "gpu_gemm_bf16_tflop_s": 790.5,
        "gpu_slowed_by": ["its power limit"],
    }
    line = formatting.machine(replace(text(), machine=facts))
    assert line == "Some GPU, 4300.1 GB/s copied on the GPU, 790.5 TFLOP/s bf16 there, slowed by its power limit"
