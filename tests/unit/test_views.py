"""A folder of links that several runs make at one time is whole for all of them, and one with links to nothing is made anew."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from compress.files.views import VIEWS, view


def fill(made: Path) -> None:
    for number in range(20):
        (made / f"{number}.txt").write_text("x" * 1000)


def _read(root: Path, start: object, failed: object) -> None:
    for key in range(40):
        start.wait(30)  # type: ignore[attr-defined]
        try:
            found = view(root, str(key), fill)
            for _ in range(5):
                assert [len((found / f"{number}.txt").read_text()) for number in range(20)] == [1000] * 20
        except (OSError, AssertionError) as error:
            failed.put(repr(error))  # type: ignore[attr-defined]


def test_several_runs_make_one_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, failed = context.Barrier(4), context.Queue()
    runs = [context.Process(target=_read, args=(tmp_path, start, failed)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0] * 4
    assert failed.empty()
    assert sorted(one.name for one in (tmp_path / VIEWS).iterdir()) == sorted(map(str, range(40)))


def test_a_whole_one_that_another_run_was_first_with_stays(tmp_path: Path) -> None:
    def nested(made: Path) -> None:
        made.with_name("one").mkdir()
        fill(made.with_name("one"))
        (made / "mine.txt").touch()

    found = view(tmp_path, "one", nested)
    assert not (found / "mine.txt").exists()
    assert [one.name for one in (tmp_path / VIEWS).iterdir()] == ["one"]


def test_one_with_links_to_nothing_gives_way(tmp_path: Path) -> None:
    target = tmp_path / "target.txt"
    target.touch()
    found = view(tmp_path, "one", lambda made: (made / "link.txt").symlink_to(target))
    target.unlink()
    assert view(tmp_path, "one", fill) == found
    assert not (found / "link.txt").is_symlink()
    assert len(list(found.iterdir())) == 20


def test_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(made: Path) -> None:
        fill(made)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        view(tmp_path, "one", fails)
    assert not list((tmp_path / VIEWS).iterdir())
