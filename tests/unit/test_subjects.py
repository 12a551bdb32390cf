"""What `pare explain data` and `pare explain models` say is read off what decides it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compress.catalogue import builders, find_metric, find_task, metric_names, task_names
from compress.commands import explain_subjects
from compress.commands.explain import explain
from compress.model.exportable import NO_GRAPH
from compress.model.families import FAMILIES, Family, Stack, Width
from compress.sources import data
from compress.sources.data import LAYOUTS, open_data
from compress.tasks import OF_DATA
from tests.editors import edits

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_layout_is_reported_and_opens_what_it_says(tmp_path: Path) -> None:
    images, rows, text = (tmp_path / name for name in ("images", "rows.jsonl", "prose.md"))
    images.mkdir()
    (images / "0.png").write_bytes(PNG)
    (images / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a cat"}))
    rows.write_text(json.dumps({"text": "a cat"}))
    text.write_text("a cat\n\na dog")
    edits(tmp_path / "edits", masks=True)
    for layout in LAYOUTS:
        there = [path for path in (images, tmp_path / "edits", rows, text) if layout.holds(path)]
        assert layout.kind in {open_data(str(path), tmp_path, layout.kind).kind for path in there[-1:]}
    assert [open_data(str(path), tmp_path).kind for path in (images, rows, text)] == [
        "captioned_images",
        "texts",
        "texts",
    ]
    assert all(layout.title in explain("data") for layout in LAYOUTS)


def test_a_layout_that_is_added_is_opened_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(LAYOUTS[-1], title="a roll of parchment", holds=lambda path: path.suffix == ".scroll")
    monkeypatch.setattr(data, "LAYOUTS", (odd, *LAYOUTS))
    monkeypatch.setattr(explain_subjects, "LAYOUTS", (odd, *LAYOUTS))
    (tmp_path / "old.scroll").write_text("once")
    assert open_data("old.scroll", tmp_path).count == 1
    assert "a roll of parchment" in explain("data")


@pytest.mark.parametrize("name", task_names())
def test_every_metric_of_a_task_is_reported_with_what_it_needs(name: str) -> None:
    task, reported = find_task(name), explain("data").partition(f"\n{name}: ")[2].partition("\n\n")[0]
    words = reported.replace(",", " ").split()
    fitting = {m for m in metric_names() if not task.fits(find_metric(m).needs, OF_DATA)}
    assert {m for m in metric_names() if m in words} >= fitting
    free = reported.partition("measured without any\n")[2].partition("  measured on")[0]
    assert "latency" in free
    assert not any(m in free.replace(",", " ").split() for m in fitting if find_metric(m).needs_data)


def test_every_family_and_every_build_is_reported() -> None:
    reported = explain("models")
    assert all(kind in reported for kind in FAMILIES)
    assert all(stage.name in reported for stage in builders())
    assert all(why in reported for why in NO_GRAPH.values())


def test_a_family_that_is_added_is_reported_with_what_can_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = Family({"ffn": Width(("wide",))}, (Stack("layers", "deep"),))
    monkeypatch.setattr(explain_subjects, "FAMILIES", {**FAMILIES, "OwlForCausalLM": reported})
    line = next(line for line in explain("models").splitlines() if "OwlForCausalLM" in line)
    assert line.split() == ["Owl", "OwlForCausalLM", "width:", "ffn;", "depth:", "deep"]
