"""The JSON Schema of a recipe, made from the stages and metrics on disk, so that editors complete and check recipes.

Whatever reading accepts is valid here. The reverse holds as far as a schema can tell: that an id is taken, a name is in the zoo or
a metric is measured, only reading knows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from compress.catalogue import find_metric, find_stage, metric_names, stage_names
from compress.params import Params
from compress.recipe.adapters import MAX_ADAPTERS, AdapterSpec
from compress.recipe.checkpoints import CheckpointSpec
from compress.recipe.entries import MAX_ENTRIES
from compress.recipe.gates import Bounds, Gate
from compress.recipe.keep import ALWAYS, IF_FASTER, KEEP
from compress.recipe.values import ADAPTER_KEY, ROLE_KEY, SCHEMA_VERSION, STEP_KEYS, DataSpec, EvalSpec, Head

Schema = dict[str, Any]

_VARIABLE: Schema = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"}
_VALUES: Schema = {"type": ["object", "null"], "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}}
_KEEP: Schema = {"anyOf": [{"enum": [ALWAYS, IF_FASTER]}, _VARIABLE]}
_BESIDE = ("title", "description", "default")  # of a value, whatever it may be
_OF_TEXT = ("enum", "const", "pattern", "minLength", "maxLength", "format")  # without one, any text is good


def recipe_schema() -> Schema:
    """The schema as JSON Schema 2020-12. Wherever a value may stand, a `${variable}` may stand too."""
    definitions: Schema = {"gate": _record(Gate, "gate", {}), "whole_gate": _whole_gate()}
    sections = {
        "data": _record(DataSpec, "data", definitions),
        "stages": _stages(definitions),
        "evaluate": _evaluate(definitions),
        "gates": _gates("gate"),
    }
    described = "another recipe, from this one's folder, that this one is laid over"
    properties = {
        "schema": {"const": SCHEMA_VERSION, "description": "version of the recipe format"},
        **_record(Head, "head", definitions)["properties"],
        "model": _model(definitions),
        "adapter": _adapter(definitions),
        **{key: _or_variable(value) for key, value in sections.items()},
        "extends": {"type": "string", "minLength": 1, "description": described},
        "vars": {**_VALUES, "description": "values for ${name}"},
        "matrix": {
            **_VALUES,
            "additionalProperties": {"type": "array", "minItems": 1},
            "description": "lists of values for ${name}: one recipe per combination",
        },
    }
    listed = {"properties": {"metrics": {"not": {"type": "object"}}}}  # a mapping is laid over a list
    sound = {"gates": _or_variable(_gates("whole_gate")), "evaluate": listed}
    whole = {"required": ["schema", "name", "model"], "properties": sound}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pare recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "anyOf": [whole, {"required": ["extends"]}],  # what is laid over another recipe need not be whole
        "$defs": definitions,
    }


def _model(definitions: Schema) -> Schema:
    """A reference, or a checkpoint in one file with where its configs are from."""
    either = [{"type": "string"}, _record(CheckpointSpec, "model", definitions)]
    return {"anyOf": either, "description": Head.model_fields["model"].description}


def _adapter(definitions: Schema) -> Schema:
    """A folder, a folder with a scale, or a list of these."""
    one = [{"type": "string", "minLength": 1}, _record(AdapterSpec, "adapter", definitions)]
    several = {"type": "array", "items": {"anyOf": one}, "maxItems": MAX_ADAPTERS}
    return {"anyOf": [*one, several, {"type": "null"}], "description": ADAPTER_KEY}


def _stages(definitions: Schema) -> Schema:
    own: Schema = {key: {"type": "string", "description": text} for key, text in STEP_KEYS.items() if key != KEEP}
    own[KEEP] = {**_KEEP, "description": STEP_KEYS[KEEP]}
    found = {}
    for name in stage_names():
        stage = find_stage(name)
        record = _record(stage.params, name, definitions)
        record["properties"] = {**own, **_roles(stage.inputs), **record.get("properties", {})}
        found[name] = {**record, "description": _first_line(stage.doc)}
    return _list_of(found, {KEEP: _KEEP})


def _roles(inputs: tuple[str, ...]) -> Schema:
    return {role: {"type": "string", "description": ROLE_KEY.format(role)} for role in inputs}


def _evaluate(definitions: Schema) -> Schema:
    found = {}
    for name in metric_names():
        metric = find_metric(name)
        found[name] = {**_record(metric.params, name, definitions), "description": metric.title}
    record = _record(EvalSpec, "evaluate", definitions)
    text = EvalSpec.model_fields["metrics"].description
    over = {name: {key: value for key, value in one.items() if key != "required"} for name, one in found.items()}
    changed = {name: _or_variable({**one, "type": ["object", "null"]}) for name, one in over.items()}
    by_name = {"type": "object", "properties": changed, "additionalProperties": False}
    either = {"anyOf": [_list_of(found), by_name]}
    record["properties"]["metrics"] = _or_variable({**either, "description": text})
    return record


def _gates(kind: str) -> Schema:
    """Of a recipe by itself (`whole_gate`), or laid over another, of which null takes a gate away."""
    removed: list[Schema] = [{"type": "null"}] if kind == "gate" else []
    known = {name: {"anyOf": [{"$ref": f"#/$defs/{kind}"}, _VARIABLE, *removed]} for name in metric_names()}
    return {"type": ["object", "null"], "properties": known, "additionalProperties": False}


def _whole_gate() -> Schema:
    """Of the bounds, one alone is given; a variable may be null, and then is none."""
    nothing = {"anyOf": [{"type": "null"}, _VARIABLE]}
    given = [{"required": [bound], "properties": {bound: {"not": nothing}}} for bound in Bounds.model_fields]
    perhaps = [{"required": [bound], "properties": {bound: _VARIABLE}} for bound in Bounds.model_fields]
    return {"anyOf": [{"oneOf": given}, {"anyOf": perhaps, "not": {"anyOf": given}}]}


def _list_of(named: Mapping[str, Schema], beside: Mapping[str, Schema] = MappingProxyType({})) -> Schema:
    """A list of names and `{name: parameters}`; a name alone stands where no parameter is required.

    Args:
        beside: what may stand beside a name.
    """
    alone = [name for name, record in named.items() if not record.get("required")]
    kinds = {name: ["object", "null"] if name in alone else "object" for name in named}
    mapping: Schema = {
        "type": "object",
        "properties": {name: _or_variable({**record, "type": kinds[name]}) for name, record in named.items()},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    more = [
        {
            **mapping,
            "properties": {**mapping["properties"], key: value},
            "required": [key],
            "minProperties": 2,
            "maxProperties": 2,
        }
        for key, value in beside.items()
    ]
    entry = {"anyOf": [*([{"enum": alone}] if alone else []), mapping, *more, _VARIABLE]}
    return {"type": ["array", "null"], "items": entry, "maxItems": MAX_ENTRIES}


def _record(cls: type[Params], label: str, definitions: Schema) -> Schema:
    """The schema of a parameter class; the records inside it move to `definitions` under `label.`."""
    schema = cls.model_json_schema(ref_template=f"#/$defs/{label}.{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        definitions[f"{label}.{name}"] = _with_variables(inner)
    return _with_variables(schema)


def _with_variables(schema: Schema) -> Schema:
    """`schema` with `${variable}` allowed for each value inside it."""
    found = dict(schema)
    if "properties" in schema:
        found["properties"] = {key: _or_variable(_with_variables(value)) for key, value in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found[key] = _or_variable(_with_variables(schema[key]))
    if "prefixItems" in schema:
        found["prefixItems"] = [_or_variable(_with_variables(value)) for value in schema["prefixItems"]]
    if "anyOf" in schema:
        found["anyOf"] = [_with_variables(option) for option in schema["anyOf"]]
    return found


def _or_variable(value: Schema) -> Schema:
    if value.get("type") == "string" and not any(key in value for key in _OF_TEXT):
        return value
    beside = {key: value[key] for key in _BESIDE if key in value}
    return {**beside, "anyOf": [{key: part for key, part in value.items() if key not in beside}, _VARIABLE]}


def _first_line(doc: str) -> str:
    return " ".join(doc.strip().split("\n\n")[0].split())
