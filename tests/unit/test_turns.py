"""Two runs on one device measure one after the other, and the second says that it waits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress.events import Event, silent
from compress.machine.turns import identity, turn

HOLDS = """
import sys
from compress.events import silent
from compress.machine.turns import turn
with turn("cpu", silent):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_the_second_waits_says_so_and_goes_on_when_the_first_ends() -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    heard: list[Event] = []
    asked, measured = threading.Event(), threading.Event()

    def emit(event: Event) -> None:
        heard.append(event)
        asked.set()

    def measure() -> None:
        with turn("cpu", emit):
            measured.set()

    waiting = threading.Thread(target=measure)
    waiting.start()
    assert asked.wait(30)
    assert not measured.is_set()
    assert heard[0].message == f"waits its turn: process {other.pid}, another run, measures on this machine"
    other.kill()  # however it ends
    assert measured.wait(30)
    waiting.join()
    other.communicate()


def test_other_devices_and_later_turns_wait_for_nobody() -> None:
    heard: list[Event] = []
    with turn("cpu", silent), turn("mps", heard.append):
        pass
    with turn("cpu", heard.append):
        pass
    assert heard == []


def test_a_gpu_goes_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"uuid of {device}"))
    assert identity("cuda:1") == "uuid of cuda:1"
    heard: list[Event] = []
    with turn("cuda:0", silent), turn("cuda:1", heard.append):
        assert heard == []
