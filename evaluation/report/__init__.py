"""A Comparison, shown: `result.json`, `report.md`, `junit.xml`, `report.html`, and the closing table of a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.scores import Comparison


def write(comparison: Comparison, directory: Path) -> None:
    """Write all four files, each whole or not at all."""
    import json

    from evaluation.report import html, junit, markdown, result

    directory.mkdir(parents=True, exist_ok=True)
    renderers: dict[str, Callable[[Comparison], str]] = {
        "result.json": lambda c: json.dumps(result.to_dict(c), indent=2, ensure_ascii=False) + "\n",
        "report.md": markdown.render,
        "junit.xml": junit.render,
        "report.html": html.render,
    }
    for name, render in renderers.items():
        temporary = directory / f".{name}.tmp"
        temporary.write_text(render(comparison), encoding="utf-8")
        temporary.replace(directory / name)
