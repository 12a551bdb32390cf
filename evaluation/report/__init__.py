"""A Comparison, shown: `result.json`, `report.md`, `junit.xml`, `report.html`, and the closing table of a terminal."""

from __future__ import annotations

import os
from pathlib import Path

from evaluation.comparison import Comparison


def write(comparison: Comparison, directory: Path) -> None:
    """Write all four files, each whole or not at all. All are rendered before the first is written."""
    import json

    from evaluation.report import html, junit, markdown, result

    texts = {
        "result.json": json.dumps(result.to_dict(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": markdown.render(comparison),
        "junit.xml": junit.render(comparison),
        "report.html": html.render(comparison),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = directory / f".{name}.{os.getpid()}.tmp"
        try:
            # A lone surrogate has no UTF-8; as \udcxx it is valid JSON, and the others hold none.
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
            temporary.replace(directory / name)
        finally:
            temporary.unlink(missing_ok=True)
