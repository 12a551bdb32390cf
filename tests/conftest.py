"""What all tests share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from compress.execution.reload import Checker

# The same examples each time, or a change would be blamed for what it did not do; `make slow` draws new ones.
# No deadline: how long an example takes is the machine's affair.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("new examples", deadline=None)
settings.load_profile(os.environ.get("PARE_EXAMPLES", "repeatable"))

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def stranger() -> Iterator[Checker]:
    """The real process that reloads artifacts, one for all tests of a file: its imports take seconds."""
    from compress.execution.reload import Checker

    with Checker() as checker:
        checker.start()
        yield checker


@pytest.fixture
def reloading(stranger: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every artifact is reloaded by that one process."""
    monkeypatch.setattr("compress.execution.execute.lent_checker", lambda: contextlib.nullcontext(stranger))


@pytest.fixture(scope="session", autouse=True)
def _alike() -> Iterator[None]:
    """The test that runs is no part of a run's surroundings: else each would start a process of its own to reload artifacts."""
    from compress.execution import reload

    def surroundings() -> tuple[dict[str, str], str]:
        return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}, os.getcwd()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reload, "_surroundings", surroundings)
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], str]:
    """What the file `tests/golden/NAME` says; `make golden` first writes the given text there, and the diff is reviewed."""

    def hold(name: str, text: str) -> str:
        if os.environ.get("PARE_GOLDEN"):
            (GOLDEN / name).write_text(text, encoding="utf-8")
        return (GOLDEN / name).read_text(encoding="utf-8")

    return hold
