"""The JSON Schema of a recipe, made from the stages and metrics on disk, so that editors complete and check recipes."""

from __future__ import annotations

from typing import Any

from compress.catalogue import find_metric, find_stage, metric_names, stage_names
from compress.params import Params
from compress.reading import Head
from compress.recipe import SCHEMA_VERSION, DataSpec, EvalSpec, Gate

_VARIABLE = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"}
_ANY_VALUES = {"type": "object", "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}}


def recipe_schema() -> dict[str, Any]:
    """The schema as JSON Schema 2020-12. Wherever a value may stand, a `${variable}` may stand too."""
    definitions: dict[str, Any] = {}
    head = _record(Head, "head", definitions)["properties"]
    properties = {
        "schema": {"const": SCHEMA_VERSION, "description": "version of the recipe format"},
        **head,
        "data": _record(DataSpec, "data", definitions),
        "stages": _stages(definitions),
        "evaluate": _evaluate(definitions),
        "gates": _gates(definitions),
        "extends": {
            "type": "string",
            "description": "another recipe, from this one's folder, that this one is laid over",
        },
        "vars": {**_ANY_VALUES, "description": "values for ${name}"},
        "matrix": {
            **_ANY_VALUES,
            "additionalProperties": {"type": "array", "minItems": 1},
            "description": "lists of values for ${name}: one recipe per combination",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pare recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "anyOf": [{"required": ["schema", "name", "model"]}, {"required": ["extends"]}],
        "$defs": definitions,
    }


def _stages(definitions: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {
        "id": {"type": "string", "description": "name of this step; default: the stage's"},
        "from": {
            "type": "string",
            "description": "id of the earlier step it continues, or source; default: the one before",
        },
    }
    found = {}
    for name in stage_names():
        stage = find_stage(name)
        record = _record(stage.params, name, definitions)
        record["properties"] = {**own, **_roles(stage.inputs), **record.get("properties", {})}
        found[name] = {**record, "type": ["object", "null"], "description": _first_line(stage.doc)}
    return {"type": ["array", "null"], "items": _one_of(found)}


def _roles(inputs: tuple[str, ...]) -> dict[str, Any]:
    described = "{}: an earlier step's id; default: source"
    return {role: {"type": "string", "description": described.format(role)} for role in inputs}


def _evaluate(definitions: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name in metric_names():
        metric = find_metric(name)
        record = _record(metric.params, name, definitions)
        found[name] = {**record, "type": ["object", "null"], "description": metric.title}
    record = _record(EvalSpec, "evaluate", definitions)
    text = record["properties"]["metrics"].get("description", "")
    record["properties"]["metrics"] = {"type": ["array", "null"], "items": _one_of(found), "description": text}
    return record


def _gates(definitions: dict[str, Any]) -> dict[str, Any]:
    gate = _record(Gate, "gate", definitions)
    gate["oneOf"] = [{"required": [bound]} for bound in ("within", "worse_by", "speedup")]
    definitions["gate"] = gate
    known = {name: {"$ref": "#/$defs/gate"} for name in metric_names()}
    return {"type": ["object", "null"], "properties": known, "additionalProperties": False}


def _one_of(named: dict[str, Any]) -> dict[str, Any]:
    """A name, or `{name: parameters}`."""
    mapping = {
        "type": "object",
        "properties": named,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [{"enum": list(named)}, mapping]} if named else mapping


def _record(cls: type[Params], label: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter class; the records inside it move to `definitions` under `label.`."""
    schema = cls.model_json_schema(ref_template=f"#/$defs/{label}.{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        definitions[f"{label}.{name}"] = _with_variables(inner)
    return _with_variables(schema)


def _with_variables(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with `${variable}` allowed for each of its values."""
    values = record.get("properties")
    if values is None:
        return record
    return {**record, "properties": {key: _or_variable(value) for key, value in values.items()}}


def _or_variable(value: dict[str, Any]) -> dict[str, Any]:
    if value.get("type") == "string" and "enum" not in value and "const" not in value:
        return value
    beside: dict[str, Any] = {key: value[key] for key in ("title", "description", "default") if key in value}
    return {**beside, "anyOf": [{k: v for k, v in value.items() if k not in beside}, _VARIABLE]}


def _first_line(doc: str) -> str:
    return " ".join(doc.strip().split("\n\n")[0].split())
