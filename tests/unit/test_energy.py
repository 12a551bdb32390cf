"""Energy from a powercap folder and an NVML made for the test: what is read, what counts twice, and what is stated without any."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.recipe.gates import Gate
from evaluation.comparison import Row
from evaluation.comparison.rows import row_of
from evaluation.evidence import Evidence, Timings
from evaluation.metrics import energy as metric
from evaluation.observe import energy, hardware
from evaluation.observe.energy import ABSENT, find_meter
from evaluation.report import result
from evaluation.values import Sample

RANGE = 1_000_000_000


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed


def domain(powercap: Path, folder: str, name: str, microjoules: int) -> Path:
    place = powercap / folder
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place / "energy_uj"


class FakeNVML(ModuleType):
    """Two cards, of which the second keeps no count."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = 5_000

    def nvmlInit(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.86"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, card: int) -> str:
        return "a card"

    def nvmlDeviceGetTotalEnergyConsumption(self, card: int) -> int:
        if card:
            raise self.NVMLError("not supported")
        return self.millijoules


def test_packages_are_added_up_in_joules(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 2_000_000)
    other = domain(tmp_path, "intel-rapl:1", "package-1", 500_000)
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.name == "RAPL package-0, RAPL package-1"
    before = meter.read()
    other.write_text("1750000")
    assert meter.read() - before == pytest.approx(1.25)


def test_parts_of_a_package_and_its_second_interface_do_not_count_again(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 7_000_000)
    domain(tmp_path, "intel-rapl:0", "package-0", 3_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    domain(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.read() == pytest.approx(3)


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    file = domain(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = find_meter(tmp_path)
    assert meter is not None
    before = meter.read()
    for microjoules, joules in ((2_000_000, 3), (RANGE - 1, 1000.999999), (500_000, 1001.5)):
        file.write_text(str(microjoules))
        assert meter.read() - before == pytest.approx(joules)


def test_a_counter_that_may_not_be_read_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 1)
    real = Path.read_text

    def refuse(self: Path, *args: Any, **options: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(self)
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert find_meter(tmp_path) is None


def test_a_machine_without_such_a_folder_has_no_meter(tmp_path: Path) -> None:
    assert find_meter(tmp_path / "absent") is None


def test_a_card_is_read_beside_the_package_and_one_without_a_counter_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    domain(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.name == "RAPL package-0, NVML a card"
    assert meter.read() == pytest.approx(6)
    library.millijoules += 2_500
    assert meter.read() == pytest.approx(8.5)


def test_a_library_without_a_driver_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", library)

    def fail() -> None:
        raise FakeNVML.NVMLError("driver not loaded")

    monkeypatch.setattr(library, "nvmlInit", fail)
    assert energy.nvml() is None
    assert find_meter(tmp_path) is None


# ---------------------------------------------------------------- the metric


def sample(joules: np.ndarray, blocks: int = 20) -> Sample:
    timings = Timings(np.ones(blocks), np.empty(0), 20, 1, joules)
    return metric.measure.measure(Evidence(Artifact(Path(), "text_to_image", {}), timings=timings), metric.Energy())


def row(baseline: Sample, candidate: Sample) -> Row:
    return row_of(metric.measure, (baseline, candidate), {}, Gate(speedup=1.5))


def test_half_the_joules_are_twice_as_good() -> None:
    found = row(sample(np.full(20, 4.0)), sample(np.full(20, 2.0)))
    assert (found.baseline.value, found.candidate.value, found.contrast.value) == pytest.approx((4, 2, 2))
    assert found.verdict.status == "pass"


def test_without_a_counter_the_row_is_there_and_says_why_and_a_gate_on_it_is_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = row(sample(np.empty(0)), sample(np.empty(0)))
    assert np.isnan((found.baseline.value, found.candidate.value, found.contrast.low, found.contrast.high)).all()
    assert (found.verdict.status, found.verdict.why) == ("inconclusive", ABSENT)
    assert found.candidate.note == ABSENT
    assert result.plain(found)["contrast"]["value"] is None


def test_calls_shorter_than_the_counters_step_have_no_number() -> None:
    joules = np.full(20, 0.01)
    joules[3] = 0
    found = row(sample(np.full(20, 0.5)), sample(joules))
    assert found.verdict.status == "inconclusive"
    assert "before this machine's energy counters moved" in found.verdict.why
    assert found.baseline.value == 0.5


# ---------------------------------------------------------------- what else the machine says of itself


def test_the_driver_is_named_by_nvml_or_by_the_kernel_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "version")
    assert hardware._driver() == ""
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX 550.54\nGCC version: 12\n")
    assert hardware._driver() == "NVRM version: NVIDIA UNIX 550.54"
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML())
    assert hardware._driver() == "570.86"


def test_the_governor_and_swap_are_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "governor").write_text("powersave\n")
    monkeypatch.setattr(hardware, "GOVERNOR", tmp_path / "governor")
    monkeypatch.setattr(hardware, "_best", lambda work, seconds=0.4: 0.5)
    found = hardware.facts()
    assert found["governor"] == "powersave"
    assert found["swap_used_gb"] >= 0
    assert "gpu_driver" in found
