"""Every section of `make gpu`, on tiny sizes and the processor: what runs on a GPU has run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.machine.deps import installed
from tests.gpu.one import run_section
from tests.gpu.results import DONE
from tests.gpu.sections import Section, parts

# Further recipes, run by what runs those of part a; code that is compiled; runs in processes of their own; a dozen models, which unit tests have too.
SLOW = (
    "dit",
    "ladder",
    "compiled-image",
    "compiled-text",
    "fastest-image",
    "fastest-text",
    "onnx-image",
    "full",
    "turns",
    "offload",
)
SECTIONS = [
    pytest.param(part, section, id=section.name, marks=[pytest.mark.slow] if section.name in SLOW else [])
    for part, sections in parts().items()
    for section in sections
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.usefixtures("reloading")
@pytest.mark.parametrize(("part", "section"), SECTIONS)
def test_a_section_runs_on_tiny_sizes(
    part: str, section: Section, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARE_CACHE", str(cache))
    if lacking := [module for module in section.needs if not installed(module)]:
        pytest.skip(f"{', '.join(lacking)} is not installed")
    found = run_section(part, section, tmp_path, tiny=True)
    assert (found.status, found.tail) == (DONE, "")
    assert found.rows
    assert f"## {section.name}" in (tmp_path / "gpu.md").read_text() or part == "machine"
