"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples each time, or a change would be blamed for what it did not do; `make slow` draws new ones.
# No deadline: how long an example takes is the machine's affair.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("new examples", deadline=None)
settings.load_profile(os.environ.get("PARE_EXAMPLES", "repeatable"))

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], str]:
    """What the file `tests/golden/NAME` says; `make golden` first writes the given text there, and the diff is reviewed."""

    def hold(name: str, text: str) -> str:
        if os.environ.get("PARE_GOLDEN"):
            (GOLDEN / name).write_text(text, encoding="utf-8")
        return (GOLDEN / name).read_text(encoding="utf-8")

    return hold
