"""`make gpu` without a GPU: a section that fails, hangs or is killed costs the others nothing, and what is missing is stated."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.gpu import needs
from tests.gpu.__main__ import main, run_part
from tests.gpu.needs import missing
from tests.gpu.results import DONE, Result, markdown, read, shown, write
from tests.gpu.sections import MOST_SECONDS, Report, Section, parts

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tests.gpu.one import run_section
from tests.gpu.sections import Section

def work(tiny, report):
    report("first", {"number": 0.25, "tiny": tiny})
    {what}
    report("last", {"number": 2})

run_section("x", Section(sys.argv[1], 1, work), Path(sys.argv[2]), True)
"""
WHAT = {
    "fails": "raise ValueError('no | number')",
    "hangs": "time.sleep(60)",
    "dies": "os.kill(os.getpid(), signal.SIGKILL)",
    "ends": "pass",
}


def nothing(tiny: bool, report: Report) -> None:
    raise AssertionError("it runs in a process of its own")


def started(section: Section, out: Path, tiny: bool) -> list[str]:
    return [sys.executable, "-c", SCRIPT.replace("{what}", WHAT[section.name]), section.name, str(out)]


def run(names: tuple[str, ...], out: Path, *, most: float = MOST_SECONDS) -> Mapping[str, Result]:
    sections = [Section(name, 3, nothing) for name in names]
    run_part("x", sections, out, tiny=True, most=most, command=started)
    found = {name: read(out, name) for name in names}
    return {name: one for name, one in found.items() if one}


def test_what_becomes_of_a_section_is_written_down_and_the_others_run(tmp_path: Path) -> None:
    found = run(tuple(WHAT), tmp_path)
    assert [found[name].status for name in WHAT] == [
        "failed: ValueError: no | number",
        "stopped after 3 s",
        "failed: its process left with SIGKILL",
        DONE,
    ]
    assert all(one.rows[0] == {"row": "first", "number": 0.25, "tiny": True} for one in found.values())
    assert [len(one.rows) for one in found.values()] == [1, 1, 1, 2]
    assert "ValueError" in found["fails"].tail
    assert (
        "| x | fails | tiny, on the processor | failed: ValueError: no \\| number |"
        in (tmp_path / "gpu.md").read_text()
    )


def test_a_part_ends_when_its_time_is_spent(tmp_path: Path) -> None:
    assert run(("ends",), tmp_path, most=1)["ends"].status == "not run: the 1 s of part x are spent"


def test_a_section_without_what_it_needs_is_a_row_and_message_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = [Section("ends", 3, nothing, needs=("no_such_module",))]
    assert not run_part("x", sections, tmp_path, tiny=True, command=started)
    found = read(tmp_path, "ends")
    assert found is not None
    assert found.status == "not run: no_such_module is not installed: pip install no-such-module"
    assert capsys.readouterr().out.startswith("missing: no_such_module is not installed")


def test_an_old_library_and_no_gpu_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.1+cu128", "transformers": "5.17.0.dev0", "diffusers": "1.0", "pydantic": "2.14"}
    monkeypatch.setattr(needs.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(needs, "gpu_name", lambda: "")
    assert missing() == ["torch 2.9.1+cu128 is older than 2.11", needs.GPU]
    assert missing(gpu=False) == ["torch 2.9.1+cu128 is older than 2.11"]


def test_the_driver_names_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H200\necho NVIDIA H200\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert needs.gpu_name() == "NVIDIA H200"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert needs.gpu_name() == ""


def test_the_report_holds_the_machine_and_every_rows_columns(tmp_path: Path) -> None:
    machine = Result("machine", "machine", False, DONE).with_row("machine", {"gpu": "NVIDIA H200", "copy_gb_s": 4300.4})
    rows = Result("b", "sdxl", False, DONE, 61.4, gpu="NVIDIA H200").with_row(
        "eager", {"ms": 150.61, "interval": [149.0, 151.25]}
    )
    rows = rows.with_row("graph", {"ms": 42.08, "cold start s": 1, "equal": True})
    text = markdown([machine, rows])
    assert "gpu NVIDIA H200, copy gb s 4,300." in text
    assert "| b | sdxl | NVIDIA H200 | done | 61 |" in text
    assert "|  | ms | interval | cold start s | equal |" in text
    assert "| graph | 42.08 |  | 1 | yes |" in text
    assert "| eager | 150.6 | [149, 151.2] |  |  |" in text


def test_a_file_that_does_not_read_is_no_result(tmp_path: Path) -> None:
    write(tmp_path, Result("a", "whole", True, DONE))
    (tmp_path / "gpu" / "whole.json").write_text("{")
    assert read(tmp_path, "whole") is None
    assert shown("a | b\nc") == "a \\| b c"


def test_every_part_fits_its_time_and_sections_have_names_of_their_own() -> None:
    found = parts()
    assert set(found) >= {"machine", "a", "d"}
    names = [section.name for sections in found.values() for section in sections]
    assert len(names) == len(set(names))
    assert all(sum(section.seconds for section in sections) <= MOST_SECONDS for sections in found.values())


def test_a_section_that_is_none_of_its_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["a", "no-such-section"])
    assert "part a has no no-such-section: same-noise" in capsys.readouterr().err
