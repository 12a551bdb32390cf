"""Fresh processes: their memory is their own, however large the process that started them, and the sides take turns."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compress.describing import describe
from compress.devices import Opening
from compress.errors import StageFailed
from compress.events import Event, silent
from evaluation import starts
from evaluation.collect import Viewpoint
from evaluation.evidence import Start
from evaluation.starts import highest_resident, start_both
from tests.fakes import language_model

BALLAST = 300_000_000


@pytest.fixture
def view(tmp_path: Path) -> Viewpoint:
    return Viewpoint(describe(language_model(tmp_path)), Opening("float32"), {}, (), "", 0, 1)


def test_a_small_process_started_by_a_large_one_is_small() -> None:
    ballast = bytearray(b"x") * BALLAST
    code = "from evaluation.starts import highest_resident; print(highest_resident())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert highest_resident() > len(ballast)
    assert 5_000_000 < int(done.stdout) < BALLAST / 2


def test_sides_take_turns_and_each_ones_first_start_is_thrown_away(
    view: Viewpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def start(which: Viewpoint) -> Start:
        seen.append(which.opening.dtype)
        return Start(1000 * len(seen), float(len(seen)))  # told apart by when they came

    monkeypatch.setattr(starts, "start", start)
    one, other = start_both((view, replace(view, opening=Opening("bfloat16"))), 3, silent)
    assert seen == ["float32", "bfloat16"] * 4
    assert [s.seconds for s in one] == [3, 5, 7]
    assert [s.seconds for s in other] == [4, 6, 8]
    assert one[0].peak_bytes == 3000


def test_starts_are_counted_as_progress(view: Viewpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    monkeypatch.setattr(starts, "start", lambda which: Start(1, 1.0))
    start_both((view, view), 2, heard.append)
    assert [(e.done, e.total) for e in heard] == [(n, 6) for n in range(7)]


def test_a_model_that_does_not_load_says_which_and_why(view: Viewpoint) -> None:
    (view.artifact.path / "config.json").unlink()
    with pytest.raises(StageFailed, match=r"a fresh process could not run the model: .*config\.json") as failed:
        starts.start(view)
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
    assert starts._why(done) == why
