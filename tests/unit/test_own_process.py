"""Work in a process of its own comes back, or its error does; what libraries print and write stays in the scratch folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.context import Context
from compress.errors import DataError, StageFailed
from compress.events import Event
from compress.quantizers.own_process import in_own_process
from tests.rooms import ROOT


def done(folder: Path, recorded: list[Event], **order: Any) -> dict[str, Any]:
    context = Context(folder / "out", folder / "scratch", emit=recorded.append, node="step")
    return in_own_process("the library", "tests.programs.ordered_work", lambda: order, context, {"OWN": "yes"})


def test_what_came_of_it_is_returned_and_nothing_is_left_outside(tmp_path: Path) -> None:
    recorded: list[Event] = []
    found = done(tmp_path, recorded, do="work")
    here = tmp_path / "scratch" / "process"
    assert found | {"pid": 0} == {"here": str(here), "offline": "1", "own": "yes", "more": "", "pid": 0}
    assert [(e.kind, e.what, e.done, e.total) for e in recorded] == [("progress", "step blocks", 1, 2)]
    assert sorted((here / "log.txt").read_text().splitlines()) == ["a library talks", "and complains"]
    assert sorted(f.name for f in here.iterdir()) == ["kept", "log.txt", "prepared"]
    assert not Path(f"/proc/{found['pid']}").exists()


def test_an_order_is_made_while_the_process_imports(tmp_path: Path) -> None:
    def order() -> dict[str, str]:
        until((tmp_path / "scratch" / "process" / "prepared").is_file)
        return {"do": "work"}

    context = Context(tmp_path / "out", tmp_path / "scratch")
    assert in_own_process("the library", "tests.programs.ordered_work", order, context, {"OWN": "yes"})["own"] == "yes"


def test_an_order_that_cannot_be_made_ends_the_process(tmp_path: Path) -> None:
    def order() -> dict[str, str]:
        raise DataError("no document has two tokens")

    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = children.read_text()
    context = Context(tmp_path / "out", tmp_path / "scratch")
    with pytest.raises(DataError):
        in_own_process("the library", "tests.programs.ordered_work", order, context, {"OWN": ""})
    assert children.read_text() == before


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("raise", "the library: ValueError: no such thing"),
        ("die", "the library: its process was killed by SIGKILL: and complains"),
        ("leave", "the library: its process left with exit code 7: and complains"),
    ],
)
def test_an_error_is_reported_with_the_place_of_the_log(do: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as caught:
        done(tmp_path, [], do=do)
    (problem,) = caught.value.problems
    assert problem.message == message
    assert problem.place == str(tmp_path / "scratch" / "process" / "log.txt")
    assert "and complains" in Path(problem.place).read_text()


def test_a_listener_that_stops_the_work_ends_the_process(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = children.read_text()
    context = Context(tmp_path / "out", tmp_path / "scratch", emit=stop)
    with pytest.raises(KeyboardInterrupt):
        in_own_process("the library", "tests.programs.ordered_work", lambda: {"do": "work"}, context, {"OWN": ""})
    assert children.read_text() == before


def test_it_does_not_see_settings_that_would_change_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AR_MORE", "3")
    context = Context(tmp_path / "out", tmp_path / "scratch")
    own = {"OWN": ""}
    assert (
        in_own_process("the library", "tests.programs.ordered_work", lambda: {"do": "work"}, context, own)["more"]
        == "3"
    )
    assert (
        in_own_process(
            "the library", "tests.programs.ordered_work", lambda: {"do": "work"}, context, own, without=("AR_",)
        )["more"]
        == ""
    )


PARENT = """
import sys
from pathlib import Path
from compress.context import Context
from compress.quantizers.own_process import in_own_process
from tests.rooms import ROOT
in_own_process("it", "tests.programs.ordered_work", lambda: {"do": "sleep", "pid": sys.argv[1]}, Context(Path("out"), Path("scratch")), {"OWN": ""})
"""


def test_it_ends_where_its_parent_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(pid)], cwd=tmp_path, env=environment) as parent:
        until(lambda: pid.is_file() and bool(pid.read_text()))
        parent.kill()
    until(lambda: not alive(int(pid.read_text())))
    assert (parent.returncode, alive(int(pid.read_text()))) == (-signal.SIGKILL, False)


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs: one that nobody has waited for yet is as good as gone."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
