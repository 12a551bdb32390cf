"""Fresh processes: their memory is their own, however large the process that started them, and the sides take turns."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compress.errors import StageFailed
from compress.events import Event, silent
from compress.machine.devices import Opening
from compress.model.describing import describe
from evaluation.evidence import Start
from evaluation.observe import cold_starts
from evaluation.observe.cold_starts import covered, device_peaks, device_seconds, highest_resident, start_both
from evaluation.observe.collect import Viewpoint
from tests.fakes import language_model

BALLAST = 300_000_000


@pytest.fixture
def view(tmp_path: Path) -> Viewpoint:
    return Viewpoint(describe(language_model(tmp_path)), Opening("float32"), {}, (), "", 0, 1)


def test_a_small_process_started_by_a_large_one_is_small() -> None:
    ballast = bytearray(b"x") * BALLAST
    code = "from evaluation.observe.cold_starts import highest_resident; print(highest_resident())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert highest_resident() > len(ballast)
    assert 5_000_000 < int(done.stdout) < BALLAST / 2


def test_a_system_that_hides_the_peak_of_its_status_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tpython\nVmRSS:\t1 kB\n")
    assert 5_000_000 < highest_resident() < 10**12


def test_a_gpus_peaks_are_torchs_own_and_a_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {"cuda:1": 5}[device])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: {"cuda:1": 8}[device])
    assert device_peaks("cuda:1") == {"device_bytes": 5, "reserved_bytes": 8}
    assert device_peaks("cpu") == {}


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [([], 0), ([(2, 3), (0, 1)], 2), ([(0, 4), (1, 2), (3, 6)], 6), ([(0, 1), (1, 2), (1, 2)], 2)],
)
def test_kernels_at_one_time_count_once(spans: list[tuple[float, float]], seconds: float) -> None:
    assert covered(spans) == seconds


@pytest.mark.parametrize("traced", [True, False])
def test_the_time_of_a_gpu_is_that_of_its_kernels(monkeypatch: pytest.MonkeyPatch, traced: bool) -> None:
    """By a trace made for the test: the processor's work and somebody's remarks are none of the GPU's."""
    import torch

    def event(device: str, start: float, end: float, remark: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            device_type=SimpleNamespace(name=device),
            time_range=SimpleNamespace(start=start, end=end),
            is_user_annotation=remark,
        )

    events = [event("CPU", 0, 9000), event("CUDA", 0, 9000, remark=True)]
    events += [event("CUDA", 1000, 2000), event("CUDA", 1500, 3000)]

    def start() -> None:
        if not traced:
            raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    trace = SimpleNamespace(start=start, stop=lambda: None, events=lambda: events)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr("torch.profiler.profile", lambda activities: trace)
    calls: list[None] = []
    found = device_seconds(lambda: calls.append(None), "cuda:0")
    assert found.get("device_seconds", 0) == pytest.approx(2e-3 if traced else 0)
    assert found["call_seconds"] > 0
    assert len(calls) == 1 + traced
    assert device_seconds(lambda: calls.append(None), "cpu") == {}


def test_sides_take_turns_and_each_ones_first_start_is_thrown_away(
    view: Viewpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def start(which: Viewpoint) -> Start:
        seen.append(which.opening.dtype)
        return Start(1000 * len(seen), float(len(seen)))  # kept apart by when they came

    monkeypatch.setattr(cold_starts, "start", start)
    one, other = start_both((view, replace(view, opening=Opening("bfloat16"))), 3, silent)
    assert seen == ["float32", "bfloat16"] * 4
    assert [s.seconds for s in one] == [3, 5, 7]
    assert [s.seconds for s in other] == [4, 6, 8]
    assert one[0].peak_bytes == 3000


def test_starts_are_counted_as_progress(view: Viewpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Event] = []
    monkeypatch.setattr(cold_starts, "start", lambda which: Start(1, 1.0))
    start_both((view, view), 2, recorded.append)
    assert [(e.done, e.total) for e in recorded] == [(n, 6) for n in range(7)]


def test_a_model_that_does_not_load_says_which_and_why(view: Viewpoint) -> None:
    (view.artifact.path / "config.json").unlink()
    with pytest.raises(StageFailed, match=r"a fresh process could not run the model: .*config\.json") as failed:
        cold_starts.start(view)
    assert failed.value.problems[0].place == str(view.artifact.path)


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it was killed by SIGSEGV"),
        ("import os; os._exit(7)", "it left with exit code 7 and no message"),
        ("raise ValueError('a\\n\\nb')", "ValueError: a"),
        ("raise KeyError", "KeyError"),
        ("from compress.errors import ModelError as E; raise E('no config', place='m', fix='get it')", "m: no config"),
    ],
)
def test_the_reason_is_never_lost(ends: str, why: str) -> None:
    done = subprocess.run([sys.executable, "-c", ends], capture_output=True, text=True, check=False)
    assert cold_starts._why(done) == why


def test_device_memory_and_time_are_a_processs_own_and_without_a_gpu_the_rows_say_why() -> None:
    from compress.artifact import Artifact, Component
    from compress.recipe.gates import Gate
    from evaluation.comparison import Row
    from evaluation.comparison.rows import row_of
    from evaluation.evidence import Evidence
    from evaluation.metrics import device_memory, device_time

    def rows(*sides: Start) -> tuple[Row, Row]:
        found = [Evidence(Artifact(Path(), "text_to_image", {}), starts=(one,) * 3) for one in sides]
        memory = tuple(device_memory.measure.measure(one, device_memory.DeviceMemory()) for one in found)
        busy = tuple(device_time.measure.measure(one, device_time.DeviceTime()) for one in found)
        return (
            row_of(device_memory.measure, (memory[0], memory[1]), {}, Gate(smaller=1.5)),
            row_of(device_time.measure, (busy[0], busy[1]), {}, Gate(faster=4)),
        )

    gpu = Start(10**9, 1.0, 8 * 10**9, 9 * 10**9, 0.15, 0.04), Start(10**9, 1.0, 4 * 10**9, 5 * 10**9, 0.042, 0.04)
    memory, busy = rows(*gpu)
    assert (memory.baseline.value, memory.candidate.value, memory.contrast.value) == pytest.approx((8000, 4000, 2))
    assert (memory.candidate.note, memory.verdict.status) == ("5000 MB reserved for it", "pass")
    assert (busy.baseline.value, busy.contrast.value) == pytest.approx((40, 1))
    assert (busy.baseline.note, busy.verdict.status) == ("of 150 ms that the call takes", "fail")
    engine = Evidence(Artifact(Path(), "x", {"model": Component("gguf", "", "Llama")}), starts=gpu[:1] * 3)
    apart = device_memory.measure.measure(engine, device_memory.DeviceMemory())
    assert np.isnan(apart.values).all()
    assert apart.note == "llama.cpp takes memory of its own, which torch does not count"
    without = rows(Start(10**9, 1.0), Start(10**9, 1.0))
    assert [row.verdict.status for row in without] == ["inconclusive"] * 2
    assert [row.verdict.why for row in without] == [device_memory.ABSENT, device_time.ABSENT]
