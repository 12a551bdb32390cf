"""What options of the command line say in one line each: metrics with their parameters, gates, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.errors import ManyProblems, Problem, RecipeError, UserError
from compress.recipe.gates import Gate
from compress.recipe.validate import check_values
from compress.recipe.yaml_tree import parse_tree


def read_metrics(names: str, settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """ "fid, kid" and ["fid.features=clip/"] to metrics with their parameters.

    Raises:
        UserError: a setting has another form, or is of a metric that is not asked for.
    """
    found: dict[str, dict[str, Any]] = {name.strip(): {} for name in names.split(",") if name.strip()}
    if not found:
        raise UserError("no metric is named", place="--metrics", fix="`pare list` shows them")
    for metric, key, value in map(_parts, settings):
        if metric not in found:
            raise UserError(f"`{metric}.{key}` is set and {metric} not measured", fix="add it to --metrics")
        found[metric][key] = _value(value)
    return found


def read_gates(given: Sequence[str]) -> Mapping[str, Gate]:
    """["kid.worse_by=0.002"] to gates.

    Raises:
        UserError: one has another form, or a bound is none; every bound that is wrong at once.
    """
    bounds: dict[str, dict[str, Any]] = {}
    for metric, key, value in map(_parts, given):
        bounds.setdefault(metric, {})[key] = _value(value)
    problems: list[Problem] = []
    checked = {metric: check_values(Gate, values, metric, "--gate", problems) for metric, values in bounds.items()}
    if problems:
        raise ManyProblems(tuple(problems))
    return {metric: gate for metric, gate in checked.items() if gate is not None}


def read_bytes(size: str) -> int:
    """ "20GB" to a count.

    Raises:
        UserError: it is no size.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number, unit = size[:-2].strip(), size[-2:].upper()
    try:
        found = int(float(number) * units[unit])
        if found < 0:
            raise ValueError("negative")
    except (KeyError, ValueError, OverflowError) as error:
        raise UserError(f"{size!r} is no size", place="--max-size", fix="for example 500MB or 20GB") from error
    return found


def _parts(text: str) -> tuple[str, str, str]:
    name, equals, value = text.partition("=")
    metric, dot, key = name.strip().partition(".")
    if not (equals and dot and metric and key):
        raise UserError(f"`{text}` is no setting", fix="write METRIC.NAME=VALUE, such as kid.worse_by=0.002")
    return metric, key, value.strip()


def _value(text: str) -> Any:
    """A value as a recipe reads it; what is no scalar and no list stays text."""
    try:
        found = parse_tree(text, "").plain()
    except RecipeError:  # such as an infinity, or nothing at all
        return text
    return found if isinstance(found, (bool, int, float, str, list)) else text
