"""A Comparison as JSON: what `--json` prints and `result.json` holds. Complete but for the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from compress.recipe.gates import Gate
from evaluation.comparison import Comparison, Completion, Contribution, Handed, Row, Side, Step, Verdict, Worst, respelt
from evaluation.comparison.control_rows import Beside, Control
from evaluation.values import Estimate

SCHEMA = 3


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything but the images, JSON-safe: numbers that are not finite become null."""
    body = {f.name: getattr(comparison, f.name) for f in fields(comparison) if f.name != "images"}
    head = {"schema_version": SCHEMA, "status": comparison.status, "exit_code": comparison.exit_code}
    found: dict[str, Any] = plain({**head, **body})
    return found


def from_dict(data: dict[str, Any]) -> Comparison:
    """Read what `to_dict` wrote; images are not in it.

    Raises:
        ValueError: it has another schema.
    """
    if data.get("schema_version") != SCHEMA:
        raise ValueError(f"result schema {data.get('schema_version')} is not the {SCHEMA} this pare reads")
    _check(data)
    return Comparison(
        name=data["name"],
        task=data["task"],
        baseline=_side(data["baseline"]),
        candidate=_side(data["candidate"]),
        rows=tuple(_row(row) for row in data["rows"]),
        machine=data["machine"],
        recipe=data["recipe"],
        stages=tuple(data["stages"]),
        steps=tuple(_step(step) for step in data["steps"]),
        completions=tuple(Completion(**c) for c in data["completions"]),
        worst=tuple(Worst(**w) for w in data["worst"]),
        warnings=tuple(data["warnings"]),
        directory=data["directory"],
        holds=data.get("holds", 0),  # no result of before tells it, nor the next
        handed=_handed(data.get("handed")),
        controls=tuple(map(_control, data.get("controls", ()))),
    )


def _check(data: dict[str, Any]) -> None:
    """Raise a ValueError or KeyError on what a report would stumble over."""
    if not isinstance(data["machine"], dict):
        raise ValueError("machine is no object")
    for stage in data["stages"]:
        _ = stage["id"], stage["cached"], float(stage["seconds"]), float(stage["size_bytes"])
    for row in (*data["rows"], *(row for control in data.get("controls", ()) for row in control["rows"])):
        if row["verdict"]["status"] not in STATUS["enum"]:
            raise ValueError(f"no status: {row['verdict']['status']}")


TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": ["number", "null"]}, {"type": "integer"}
STATUS = {"enum": ["pass", "fail", "inconclusive", "not gated"]}


def schema() -> dict[str, Any]:
    """The JSON Schema of a result."""
    side = _closed(
        {
            **dict.fromkeys(("name", "digest", "engine"), TEXT),
            "call": {"type": "object"},
            "lineage": {"type": "array"},
            "read_bytes": WHOLE,
            "unheeded": {"type": "array", "items": TEXT},
        }
    )
    completion = _closed(
        {**dict.fromkeys(("unit_id", "prompt", "baseline", "candidate"), TEXT), "first_divergent_token": WHOLE}
    )
    worst = _closed({**dict.fromkeys(("metric", "unit_id", "text"), TEXT), "baseline": NUMBER, "candidate": NUMBER})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_closed(
            {
                "schema_version": {"const": SCHEMA},
                "status": STATUS,
                "exit_code": {"enum": [0, 1, 4]},
                **dict.fromkeys(("name", "task", "recipe", "directory"), TEXT),
                "baseline": side,
                "candidate": side,
                "rows": {"type": "array", "items": _row_schema()},
                "machine": {"type": "object"},
                "stages": {"type": "array", "items": _stage_schema()},
                "steps": {"type": "array", "items": _step_schema()},
                "controls": {"type": "array", "items": _control_schema(side)},
                "completions": {"type": "array", "items": completion},
                "worst": {"type": "array", "items": worst},
                "warnings": {"type": "array", "items": TEXT},
                "holds": WHOLE,
                "handed": _or_null(_closed({"path": TEXT, "code": {"type": "array", "items": TEXT}, "note": TEXT})),
            }
        ),
    }


def _row_schema() -> dict[str, Any]:
    return _closed(
        {
            "metric": TEXT,
            "title": TEXT,
            "unit": TEXT,
            "better": {"enum": ["lower", "higher", "same"]},
            "compared": {"enum": ["difference", "ratio"]},
            **dict.fromkeys(("baseline", "candidate", "contrast"), _estimate_schema()),
            "verdict": VERDICT,
            "noise": _or_null(_estimate_schema()),
            "gate": _or_null({"type": "object"}),
            "protocol": {"type": "object"},
        }
    )


def _stage_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "stage", "key", "cached", "seconds", "size_bytes", "facts"],
        "properties": {
            "id": TEXT,
            "stage": TEXT,
            "params": {"type": "object"},
            "key": TEXT,
            "cached": {"type": "boolean"},
            "facts": {"type": "object"},
        },
    }


def _step_schema() -> dict[str, Any]:
    estimate = _estimate_schema()
    contribution = _closed({"metric": TEXT, "title": TEXT, "cumulative": estimate, "marginal": _or_null(estimate)})
    return _closed(
        {
            "stage": TEXT,
            "size_bytes": WHOLE,
            "speed": _or_null(contribution),
            "quality": {"type": "array", "items": contribution},
            "note": TEXT,
        }
    )


def _control_schema(side: dict[str, Any]) -> dict[str, Any]:
    estimate = _estimate_schema()
    row = {**dict.fromkeys(("metric", "title"), TEXT), **dict.fromkeys(("score", "contrast", "over"), estimate)}
    rows = _closed({**row, "verdict": VERDICT, "noise": _or_null(estimate)})
    return _closed({"stage": TEXT, "side": side, "rows": {"type": "array", "items": rows}})


def _estimate_schema() -> dict[str, Any]:
    return _closed({"value": NUMBER, "low": NUMBER, "high": NUMBER, "n": WHOLE, "note": TEXT})


def _or_null(found: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [found, {"type": "null"}]}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


VERDICT = _closed({"status": STATUS, "gate": TEXT, "why": TEXT, "n_needed": WHOLE, "setting": TEXT})


def plain(value: object) -> Any:
    """A value of JSON's own types: mappings and records to dicts, sequences to lists, what has no number to null.

    Anything else (a path, a dtype) becomes its text.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Gate):
        return {k: v for k, v in value if v is not None}
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
    return Side(**{**respelt(data), "lineage": tuple(data["lineage"]), "unheeded": tuple(data.get("unheeded", ()))})


def _handed(data: dict[str, Any] | None) -> Handed | None:
    return Handed(**{**data, "code": tuple(data["code"])}) if data else None


def _row(data: dict[str, Any]) -> Row:
    estimates = {key: _estimate(data[key]) for key in ("baseline", "candidate", "contrast")}
    noise = _estimate(data["noise"]) if data["noise"] else None
    gate = Gate(**data["gate"]) if data["gate"] else None
    protocol = respelt(data["protocol"])
    return Row(
        **{
            **data,
            **estimates,
            "protocol": protocol,
            "verdict": Verdict(**data["verdict"]),
            "noise": noise,
            "gate": gate,
        }
    )


def _step(data: dict[str, Any]) -> Step:
    speed = _contribution(data["speed"]) if data["speed"] else None
    return Step(**{**data, "speed": speed, "quality": tuple(map(_contribution, data["quality"]))})


def _control(data: dict[str, Any]) -> Control:
    return Control(data["stage"], _side(data["side"]), tuple(map(_beside, data["rows"])))


def _beside(data: dict[str, Any]) -> Beside:
    estimates = {key: _estimate(data[key]) for key in ("score", "contrast", "over")}
    noise = _estimate(data["noise"]) if data["noise"] else None
    return Beside(**{**data, **estimates, "verdict": Verdict(**data["verdict"]), "noise": noise})


def _contribution(data: dict[str, Any]) -> Contribution:
    marginal = _estimate(data["marginal"]) if data["marginal"] else None
    return Contribution(**{**data, "cumulative": _estimate(data["cumulative"]), "marginal": marginal})


def _estimate(data: dict[str, Any]) -> Estimate:
    numbers = {key: math.nan if data[key] is None else float(data[key]) for key in ("value", "low", "high")}
    return Estimate(**{**data, **numbers})
