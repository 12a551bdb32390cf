"""Check values against their parameter class, and say every mistake in plain words at its place: the one translation of pydantic's
errors, for recipes as for values given in Python or as options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError

from compress.errors import Problem, RecipeError, near
from compress.params import Params
from compress.recipe.python_values import tree_of
from compress.recipe.yaml_tree import Node

P = TypeVar("P", bound=Params)

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
}
_JSON_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
    "multipleOf": "a multiple of",
}


def check_params(cls: type[P], node: Node, label: str, problems: list[Problem], also: tuple[str, ...] = ()) -> P | None:
    """The mapping `node` as a `cls`, or None with everything wrong with it added to `problems`.

    `also` are keys that the caller takes itself; they count as near matches of an unknown key.
    Values are taken strictly: a quoted number is text, and `4.0` is no whole number.
    """
    if not isinstance(node.value, dict):
        fix = "write `key: value` pairs" + f", or leave `{label}:` out" * (node.value is None)
        problems.append(Problem(node.at, f"{label} must be a mapping, not {given(node.value)}", fix))
        return None
    try:
        return cls.model_validate_json(json.dumps(node.plain()), strict=True)
    except ValidationError as error:
        problems.extend(_problems(cls, node, label, error, also))
        return None


def check_values(
    cls: type[P], values: Mapping[str, object], label: str, place: str, problems: list[Problem]
) -> P | None:
    """As `check_params`, for values that stand in no file; `place` is where all of them were given."""
    try:
        node = tree_of(values, place, label)
    except RecipeError as error:
        problems.extend(error.problems)
        return None
    return check_params(cls, node, label, problems)


def given(value: object) -> str:
    """What the user wrote, as they wrote it, shortened."""
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def allowed(schema: Mapping[str, Any]) -> str:
    """A field's JSON schema in words: `a number greater than 0 and less than 1`."""
    options = [allowed(option) for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if options:
        return " or ".join(option for option in options if option)
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    bounds = [f"{words} {schema[key]:.12g}" for key, words in _BOUNDS.items() if key in schema]
    return " ".join(part for part in (_JSON_KINDS.get(str(schema.get("type")), ""), " and ".join(bounds)) if part)


def _problems(
    cls: type[Params], node: Node, label: str, error: ValidationError, also: tuple[str, ...]
) -> list[Problem]:
    """One problem for each wrong value: the branches of a union are joined by "or"."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for one in error.errors(include_url=False):
        parts, _ = _walk(node, one["loc"])
        missing = map(str, one["loc"][-1:]) if one["type"] == "missing" else ()
        grouped.setdefault(".".join([*parts, *missing]), []).append({**one})
    within = {
        path for path, errors in grouped.items() if all(map(_of_another_kind, errors)) and _goes_on(path, grouped)
    }
    return [_problem(cls, node, label, path, errors, also) for path, errors in grouped.items() if path not in within]


def _of_another_kind(error: Mapping[str, Any]) -> bool:
    return error["type"] == "literal_error" or str(error["type"]).endswith("_type")


def _goes_on(path: str, others: Iterable[str]) -> bool:
    """Whether something is wrong inside a value, too: the branch of a union that got that far is the one that was meant."""
    return any(other.startswith(f"{path}.") for other in others)


def _walk(node: Node, loc: Sequence[int | str]) -> tuple[list[str], Node]:
    """As far into the tree as `loc` goes; pydantic puts names of union branches in between, which are skipped."""
    parts: list[str] = []
    for part in loc:
        child = node.child(str(part))
        if child is not None:
            node = child
            parts.append(str(part))
    return parts, node


def _problem(
    cls: type[Params], node: Node, label: str, path: str, errors: Sequence[Mapping[str, Any]], also: tuple[str, ...]
) -> Problem:
    first = errors[0]
    parts, found = _walk(node, first["loc"])
    where = ".".join(part for part in (label, path) if part)
    owner = _owner(cls, parts[:-1] if first["type"] == "extra_forbidden" else parts)
    if first["type"] == "extra_forbidden":
        known = tuple(dict.fromkeys((*owner, *(also if len(parts) == 1 else ()))))
        return Problem(found.key or found.place, f"{where}: unknown key", near(str(first["loc"][-1]), known))
    depths = range(len(parts), 0, -1)  # the field itself, or the one whose list or mapping it is part of
    field: Mapping[str, Any] = next((own for n in depths if (own := _owner(cls, parts[: n - 1]).get(parts[n - 1]))), {})
    if first["type"] == "missing":
        field = owner.get(str(first["loc"][-1]), {})
        return Problem(found.key or found.place, f"{where} is missing", _fix(field) or "add it")
    message = " or ".join(dict.fromkeys(_words(one) for one in errors)).replace(" or must be ", " or ")
    spare = f"; or leave `{parts[-1]}:` out" if found.value is None and parts and "default" in field else ""
    return Problem(found.at, f"{where} {message}, not {given(found.value)}", _fix(field) + spare)


def _fix(field: Mapping[str, Any]) -> str:
    """What the field takes and what it is for."""
    takes, text = allowed(field), str(field.get("description", ""))
    return f"give {takes}" + (f": {text}" if text else "") if takes else text


@cache
def _schema(cls: type[Params]) -> dict[str, Any]:
    return cls.model_json_schema()


def _owner(cls: type[Params], parts: Sequence[str]) -> dict[str, Any]:
    """The fields, as JSON schema, of the record that lies `parts` deep in `cls`."""
    schema = _schema(cls)
    definitions = schema.get("$defs", {})
    for part in parts:
        schema = schema.get("properties", {}).get(part, {})
        for option in (schema, *schema.get("anyOf", ())):
            if "$ref" in option:
                schema = definitions[option["$ref"].rsplit("/", 1)[-1]]
    properties: dict[str, Any] = schema.get("properties", {})
    return properties


def _words(error: Mapping[str, Any]) -> str:
    kind, context = str(error["type"]), error.get("ctx", {})
    limits = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
        "multiple_of": ("multiple_of", "a multiple of"),
    }
    if kind in limits:
        key, words = limits[kind]
        return f"must be {words} {context[key]:.12g}"
    if kind in ("literal_error", "enum"):
        return f"must be one of {context['expected']}"
    if kind == "string_pattern_mismatch":
        named = str(context.get("pattern", "")).startswith("^(")  # alternatives, which the description names
        return "must be one of those that are named" if named else "must be written otherwise"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters"
    if kind == "int_from_float":
        return "must be a whole number"
    if kind in ("too_short", "too_long"):
        least = "at least" if kind == "too_short" else "at most"
        return f"must have {least} {context.get('min_length', context.get('max_length'))} entries"
    base = kind.removesuffix("_type").removesuffix("_parsing")
    if base in _KINDS and base != kind:
        return f"must be {_KINDS[base]}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"is refused: {message[:1].lower()}{message[1:]}"
