"""Files that a document names are there: whoever follows a name finds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rooms import ROOT

DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md")
TO_BE = {"METHOD.py", "NAME.py"}  # stand for what somebody will add
NAMES = {file.name for part in ("compress", "evaluation", "tests") for file in (ROOT / part).rglob("*.py")} | TO_BE


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_python_file_that_is_named_is_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert {Path(name).name for name in re.findall(r"[\w/]*\b\w+\.py\b", text)} - NAMES == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_path_that_is_named_is_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:compress|evaluation|tests|recipes|reports|docs)/[\w/.-]+)`", text))
    there = [path for path in paths if not any(word in path for word in ("NAME", "METHOD", "FORMAT", "VERB"))]
    assert [path for path in sorted(there) if not (ROOT / path).exists()] == []
