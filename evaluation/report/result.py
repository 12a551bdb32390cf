"""A Comparison as JSON: what `--json` prints and `result.json` holds. Complete but for the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from evaluation.scores import Comparison, Completion, Estimate, Row, Side, Verdict

SCHEMA = 1


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything but the pictures, JSON-safe: numbers that are not finite become null."""
    body = {f.name: getattr(comparison, f.name) for f in fields(comparison) if f.name != "pictures"}
    head = {"schema_version": SCHEMA, "status": comparison.status, "exit_code": comparison.exit_code}
    found: dict[str, Any] = plain({**head, **body})
    return found


def from_dict(data: dict[str, Any]) -> Comparison:
    """Read what `to_dict` wrote; pictures are not in it.

    Raises:
        ValueError: it has another schema.
    """
    if data.get("schema_version") != SCHEMA:
        raise ValueError(f"result schema {data.get('schema_version')} is not the {SCHEMA} this pare reads")
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
    text, number, whole = {"type": "string"}, {"type": ["number", "null"]}, {"type": "integer"}
    estimate = _closed({"value": number, "low": number, "high": number, "n": whole, "note": text})
    verdict = _closed(
        {
            "status": {"enum": ["pass", "fail", "inconclusive", "not gated"]},
            "gate": text,
            "why": text,
            "n_needed": whole,
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
    completion = _closed(
        {**dict.fromkeys(("unit_id", "prompt", "baseline", "candidate"), text), "first_divergent_token": whole}
    )
    stage = {
        "type": "object",
        "required": ["id", "stage", "key", "cached", "seconds", "size_bytes", "facts"],
        "properties": {
            "id": text,
            "stage": text,
            "key": text,
            "cached": {"type": "boolean"},
            "facts": {"type": "object"},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_closed(
            {
                "schema_version": {"const": SCHEMA},
                "status": verdict["properties"]["status"],
                "exit_code": {"enum": [0, 1, 4]},
                **dict.fromkeys(("name", "task", "recipe", "directory"), text),
                "baseline": side,
                "candidate": side,
                "rows": {"type": "array", "items": row},
                "machine": {"type": "object"},
                "stages": {"type": "array", "items": stage},
                "completions": {"type": "array", "items": completion},
                "warnings": {"type": "array", "items": text},
            }
        ),
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


def plain(value: Any) -> Any:
    """A value of JSON's own types: mappings and records to dicts, sequences to lists, what has no number to null.

    Anything else (a path, a dtype) becomes its text.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=str)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)


def _side(data: dict[str, Any]) -> Side:
    return Side(**{**data, "lineage": tuple(data["lineage"])})


def _row(data: dict[str, Any]) -> Row:
    estimates = {key: _estimate(data[key]) for key in ("baseline", "candidate", "contrast")}
    noise = _estimate(data["noise"]) if data["noise"] else None
    return Row(**{**data, **estimates, "verdict": Verdict(**data["verdict"]), "noise": noise})


def _estimate(data: dict[str, Any]) -> Estimate:
    numbers = {key: math.nan if data[key] is None else data[key] for key in ("value", "low", "high")}
    return Estimate(**{**data, **numbers})
