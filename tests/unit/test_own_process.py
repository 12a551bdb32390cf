"""Work in a process of its own comes back, or its error does; what libraries print and write stays in the scratch folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from compress.context import Context
from compress.errors import StageFailed
from compress.events import Event
from compress.quantizers.own_process import in_own_process


def done(folder: Path, recorded: list[Event], **order: Any) -> dict[str, Any]:
    context = Context(folder / "out", folder / "scratch", emit=recorded.append, node="step")
    return in_own_process("tests.worker", order, context, {"OWN": "yes"})


def test_what_came_of_it_is_returned_and_nothing_is_left_outside(tmp_path: Path) -> None:
    recorded: list[Event] = []
    found = done(tmp_path, recorded, do="work")
    here = tmp_path / "scratch" / "process"
    assert found | {"pid": 0} == {"here": str(here), "offline": "1", "own": "yes", "pid": 0}
    assert [(e.kind, e.what, e.done, e.total) for e in recorded] == [("progress", "step blocks", 1, 2)]
    assert sorted((here / "log.txt").read_text().splitlines()) == ["a library talks", "and complains"]
    assert sorted(f.name for f in here.iterdir()) == ["kept", "log.txt"]
    assert not Path(f"/proc/{found['pid']}").exists()


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("raise", "ValueError: no such thing"),
        ("die", "its process was killed by SIGKILL: and complains"),
        ("leave", "its process left with exit code 7: and complains"),
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
        in_own_process("tests.worker", {"do": "work"}, context, {"OWN": ""})
    assert children.read_text() == before
