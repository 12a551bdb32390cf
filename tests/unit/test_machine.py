"""The machine is part of every number: what it is, and ceilings that were measured and not looked up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.machine import deps
from evaluation.observe import hardware
from evaluation.report import formatting, result
from tests.unit.comparisons import MACHINE, text


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return hardware.facts()


def test_facts_hold_what_the_report_shows(facts: dict[str, Any]) -> None:
    assert set(facts) >= set(MACHINE)
    assert facts["processor"]
    assert 1 <= facts["cores"] <= facts["logical_cores"] == os.cpu_count()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_gb"] > 0.5


def test_facts_are_plain_json(facts: dict[str, Any]) -> None:
    assert json.loads(json.dumps(facts)) == facts
    assert result.plain(facts) == facts


def test_ceilings_are_of_a_computers_size(facts: dict[str, Any]) -> None:
    assert 0.2 < facts["read_gb_s"] < 5_000
    assert 0.2 < facts["gemm_gflop_s"] < 500_000


def test_libraries_are_named_with_the_versions_in_use(facts: dict[str, Any]) -> None:
    assert {"torch", "transformers", "diffusers", "openvino", "nncf", "numpy", "onnxruntime"} <= set(facts["libraries"])
    assert "llama-cpp-python" not in facts["libraries"] or deps.version("llama-cpp-python")  # only what is installed
    assert torch.__version__.startswith(facts["libraries"]["torch"])
    assert all(facts["libraries"].values())


def test_the_report_says_it_in_one_line(facts: dict[str, Any]) -> None:
    from dataclasses import replace

    line = formatting.machine(replace(text(), machine=facts))
    assert facts["processor"] in line
    assert ("1 thread," if facts["threads"] == 1 else f"{facts['threads']} threads,") in line
    assert "\n" not in line


def test_flags_are_the_ones_that_matter_for_low_precision(facts: dict[str, Any]) -> None:
    known = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd"}
    assert set(facts["flags"]) <= known
    assert len(facts["flags"]) == len(set(facts["flags"]))


def test_a_ceiling_is_the_best_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock moved by the work itself: 0.2, 0.05 and 0.3 seconds, and then the time is up."""
    now, durations = [0.0], iter((0.2, 0.05, 0.3, 9.0))

    def work() -> None:
        now[0] += next(durations)

    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert hardware._best(work, 0.4) == pytest.approx(0.05)
    assert now[0] == pytest.approx(0.55)


def test_bandwidth_and_peak_count_bytes_and_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_best", lambda work, seconds=0.4: 0.5)
    assert hardware._bandwidth() == pytest.approx(32_000_000 * 4 / 0.5 / 1e9)
    assert hardware._gemm() == pytest.approx(2 * 1024**3 / 0.5 / 1e9)


def test_a_system_without_proc_still_names_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Path, *args: Any, **options: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr("platform.processor", lambda: "a chip")
    assert hardware._processor() == "a chip"
