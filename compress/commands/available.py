"""What there is to work with: every task, engine, stage, metric, zoo model and zoo data set found on disk."""

from __future__ import annotations

from compress import catalogue
from compress.zoo import ADAPTERS, MODELS, SETS, SPLITS


def inventory() -> dict[str, dict[str, str] | list[str]]:
    """By kind: names, each with one line on it; of models, adapters and data the names alone."""
    return {
        "tasks": {name: catalogue.find_task(name).title for name in catalogue.task_names()},
        "engines": {name: catalogue.find_engine(name).title for name in catalogue.engine_names()},
        "stages": {name: _headline(catalogue.find_stage(name).doc) for name in catalogue.stage_names()},
        "metrics": {name: catalogue.find_metric(name).title for name in catalogue.metric_names()},
        "models": [f"zoo://{folder.name}" for folder in sorted(MODELS.glob("*/"))],
        "adapters": [f"zoo://{folder.name}" for folder in sorted(ADAPTERS.glob("*/"))],
        "data": [f"zoo://{name}/{split}" for name in SETS for split in SPLITS],
    }


def shown(found: dict[str, dict[str, str] | list[str]]) -> str:
    """An inventory as text."""
    lines = []
    for title, rows in found.items():
        named = [f"{name:<22} {line}" for name, line in rows.items()] if isinstance(rows, dict) else rows
        lines += [title, *(f"  {row}" for row in named)]
    return "\n".join(lines)


def _headline(doc: str) -> str:
    return doc.strip().split("\n", 1)[0]
