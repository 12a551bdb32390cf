"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], str]:
    """What the file `tests/golden/NAME` says; `make golden` first writes the given text there, and the diff is reviewed."""

    def hold(name: str, text: str) -> str:
        if os.environ.get("PARE_GOLDEN"):
            (GOLDEN / name).write_text(text, encoding="utf-8")
        return (GOLDEN / name).read_text(encoding="utf-8")

    return hold
