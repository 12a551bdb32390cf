"""Every quantizer on every family, on tiny instances: quantized, opened by stock libraries alone and near what it was, or refused at plan in one
sentence, as docs/quantization.md says. `make slow` tries all of it and writes the page anew; `make test` tries a few cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import Artifact
from tests.programs.family_table import TITLES
from tests.programs.quantizer_table import BEGIN, END, FAMILIES, PAGE, WAYS, Way, label, pages, read, tried
from tests.quantizing import tiny

pytest.importorskip("gptqmodel", reason="needs pare[gptq]")
pytest.importorskip("auto_round", reason="needs pare[autoround]")
STAGES = {task: tuple(dict.fromkeys(way.stage for way in WAYS if way.task == task)) for task in FAMILIES}
CASES = [(task, family, stage) for task, families in FAMILIES.items() for family in families for stage in STAGES[task]]
# The cells of every day: two that run, and what is refused, which takes a plan.
DAILY = {
    ("llama", "quantize.torchao"),
    ("mixtral", "quantize.autoround"),
    ("mamba2", "quantize.gptq"),
    ("gpt2", "distill.quantized"),
}
COMMITTED = PAGE.read_text(encoding="utf-8")


def case(task: str, family: str, stage: str) -> Any:
    marks = [] if (family, stage) in DAILY else [pytest.mark.slow, pytest.mark.timeout(1800)]
    return pytest.param(task, family, stage, marks=marks, id=f"{family}-{stage}")


@pytest.fixture(scope="module")
def cells() -> Iterator[dict[tuple[str, Way], str]]:
    """What was found; the page is written anew where all of it was tried."""
    found: dict[tuple[str, Way], str] = {}
    yield found
    if found.keys() == {(family, way) for way in WAYS for family in FAMILIES[way.task]}:
        before, _, rest = COMMITTED.partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{pages(found)}\n\n{END}{after}", encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return Models(tmp_path_factory)


class Models(dict[str, Artifact]):
    """A family's model, made when it is asked for."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        super().__init__()
        self.folders = folders

    def __missing__(self, family: str) -> Artifact:
        return self.setdefault(family, tiny(family, self.folders.mktemp(family) / "model"))


@pytest.mark.parametrize(("task", "family", "stage"), [case(*one) for one in CASES])
def test_each_cell_passes_or_is_refused_as_the_page_says(
    task: str, family: str, stage: str, models: dict[str, Artifact], cells: dict[tuple[str, Way], str], tmp_path: Path
) -> None:
    ways = [way for way in WAYS if (way.task, way.stage) == (task, stage)]
    found = tried(ways, models[family], tmp_path)
    cells.update({(family, way): cell for way, cell in found.items()})
    committed, title = read(COMMITTED), TITLES.get(family, family)
    wanted = {way.title + way.parts: committed.get((title, label(way))) for way in ways}
    assert {way.title + way.parts: cell for way, cell in found.items()} == wanted, (
        "review what `make slow` wrote into the page"
    )
