"""A container's share of the processors decides how many threads compute, unless its user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.machine import quota
from compress.machine.quota import keep_to_quota


def group(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"cpu_max": "max 100000\n"}, None),
        ({"cpu_max": "150000 100000\n"}, 1.5),
        ({"cpu_max": "0 100000\n"}, None),
        ({"cpu_max": "a few"}, None),
        ({"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}, None),
        ({"cpu__cpu_cfs_quota_us": "300000\n", "cpu__cpu_cfs_period_us": "100000\n"}, 3.0),
        ({"cpu__cpu_cfs_quota_us": "300000\n"}, None),
    ],
)
def test_what_a_control_group_says(files: dict[str, str], found: float | None, tmp_path: Path) -> None:
    assert quota.quota(group(tmp_path, **files)) == found


@pytest.mark.parametrize(
    ("allowed", "given", "threads"),
    [
        ("150000", {}, "1"),
        ("50000", {}, "1"),
        ("250000", {}, "2"),
        ("900000", {}, None),
        ("150000", {"OMP_NUM_THREADS": "4"}, "4"),
    ],
)
def test_threads_keep_to_it(
    allowed: str, given: dict[str, str], threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "processors", lambda: frozenset(range(8)))
    environment = dict(given)
    keep_to_quota(environment, group(tmp_path, cpu_max=f"{allowed} 100000"))
    assert environment.get("OMP_NUM_THREADS") == threads


def test_the_command_keeps_to_it_before_anything_is_imported(tmp_path: Path) -> None:
    group(tmp_path, cpu_max="1000 100000")
    lines = (
        "import sys, os, pathlib; from compress.machine import quota",
        f"quota.keep_to_quota.__defaults__ = (pathlib.Path({str(tmp_path)!r}),)",
        "quota.processors = lambda: frozenset(range(8))",
        "from compress.cli import main; assert 'torch' not in sys.modules",
        "import atexit; atexit.register(lambda: print(os.environ.get('OMP_NUM_THREADS')))",
        "main(['list'])",
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    found = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.splitlines()[-1] == "1"
