"""A Comparison as JSON: what `--json` prints and `result.json` holds. Complete but for the pictures."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from evaluation.scores import Comparison, Completion, Estimate, Row, Side, Verdict

SCHEMA = 1


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """JSON-safe: numbers that are not finite become null."""
    body = {f.name: getattr(comparison, f.name) for f in fields(comparison) if f.name != "pictures"}
    head = {"schema": SCHEMA, "status": comparison.status, "exit_code": comparison.exit_code}
    found: dict[str, Any] = _plain({**head, **body})
    return found


def from_dict(data: dict[str, Any]) -> Comparison:
    """Read what `to_dict` wrote; pictures are not in it.

    Raises:
        ValueError: it has another schema.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(f"result schema {data.get('schema')} is not {SCHEMA}")
    return Comparison(
        name=data["name"],
        task=data["task"],
        baseline=_side(data["baseline"]),
        candidate=_side(data["candidate"]),
        rows=tuple(_row(row) for row in data["rows"]),
        machine=data["machine"],
        recipe=data["recipe"],
        stages=tuple(data["stages"]),
        completions=tuple(Completion(**c) for c in data["completions"]),
        warnings=tuple(data["warnings"]),
        directory=data["directory"],
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of a result."""
    text, number = {"type": "string"}, {"type": ["number", "null"]}
    estimate = _closed({"value": number, "low": number, "high": number, "n": {"type": "integer"}, "note": text})
    verdict = _closed(
        {
            "status": {"enum": ["pass", "fail", "inconclusive", "not gated"]},
            "gate": text,
            "why": text,
            "n_needed": {"type": "integer"},
        }
    )
    side = _closed(
        {"name": text, "digest": text, "engine": text, "call": {"type": "object"}, "lineage": {"type": "array"}}
    )
    row = _closed(
        {
            "metric": text,
            "title": text,
            "unit": text,
            "better": {"enum": ["lower", "higher", "same"]},
            "compared": {"enum": ["difference", "ratio"]},
            **dict.fromkeys(("baseline", "candidate", "contrast"), estimate),
            "verdict": verdict,
            "noise": {"anyOf": [estimate, {"type": "null"}]},
            "protocol": {"type": "object"},
        }
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_closed(
            {
                "schema": {"const": SCHEMA},
                "status": verdict["properties"]["status"],
                "exit_code": {"enum": [0, 1, 4]},
                **dict.fromkeys(("name", "task", "recipe", "directory"), text),
                "baseline": side,
                "candidate": side,
                "rows": {"type": "array", "items": row},
                "machine": {"type": "object"},
                "stages": {"type": "array", "items": {"type": "object"}},
                "completions": {"type": "array", "items": {"type": "object"}},
                "warnings": {"type": "array", "items": text},
            }
        ),
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _side(data: dict[str, Any]) -> Side:
    return Side(**{**data, "lineage": tuple(data["lineage"])})


def _row(data: dict[str, Any]) -> Row:
    estimates = {key: _estimate(data[key]) for key in ("baseline", "candidate", "contrast")}
    noise = _estimate(data["noise"]) if data["noise"] else None
    return Row(**{**data, **estimates, "verdict": Verdict(**data["verdict"]), "noise": noise})


def _estimate(data: dict[str, Any]) -> Estimate:
    numbers = {key: math.nan if data[key] is None else data[key] for key in ("value", "low", "high")}
    return Estimate(**{**data, **numbers})
