"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], None]:
    """Hold a text to the file `tests/golden/NAME`; `make golden` rewrites the files, and the diff is reviewed."""

    def hold(name: str, text: str) -> None:
        if os.environ.get("PARE_GOLDEN"):
            (GOLDEN / name).write_text(text, encoding="utf-8")
        assert text == (GOLDEN / name).read_text(encoding="utf-8")

    return hold
