"""The engines that a stage tried on a component, as a table: what it kept, and why not another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report import formatting

HEADINGS = ("engine", "time a call", "× torch", "noise", "difference to torch", "")
KEYS = frozenset({"engine", "milliseconds", "times torch", "noise", "difference", "why not"})


@dataclass(frozen=True)
class Trials:
    """One component's: `rows` have a cell for each of `HEADINGS`, the fastest first."""

    stage: str
    component: str
    kept: str
    rows: tuple[tuple[str, ...], ...]


def is_trials(fact: object) -> bool:
    """Whether a stage's fact is such a table."""
    return bool(fact) and isinstance(fact, Sequence) and all(isinstance(r, Mapping) and r.keys() >= KEYS for r in fact)


def read(stages: Sequence[Mapping[str, Any]]) -> tuple[Trials, ...]:
    """All tables among the stages' facts, where `NAME kept` stands beside `NAME tried`."""
    found = []
    for stage in stages:
        facts = stage.get("facts", {})
        for name, fact in facts.items():
            if is_trials(fact):
                component = name.rpartition(" ")[0]
                kept = str(facts.get(f"{component} kept".strip(), ""))
                rows = tuple(_cells(row, kept) for row in fact)
                found.append(Trials(str(stage["id"]), component, kept, rows))
    return tuple(found)


def _cells(row: Mapping[str, Any], kept: str) -> tuple[str, ...]:
    name = str(row["engine"])
    timed = row["milliseconds"] is not None
    return (
        name,
        f"{formatting.number(row['milliseconds'])} ms" if timed else "–",
        f"{formatting.number(row['times torch'])}×" if timed else "–",
        f"±{100 * row['noise']:.1f}%" if timed else "–",
        formatting.number(row["difference"]) if row["difference"] is not None else "–",
        "kept" if name == kept else str(row["why not"]),
    )
