"""Parameters that are named once, in `evaluate`, for every metric that has one of that name and is given none itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compress.catalogue import find_metric, metric_names
from compress.params import Shared
from compress.recipe.values import EvalSpec
from compress.recipe.yaml_tree import Node


def shared_names() -> tuple[str, ...]:
    """The settings of `evaluate` that are parameters of metrics."""
    fields = EvalSpec.model_fields.items()
    return tuple(name for name, field in fields if any(isinstance(m, Shared) for m in field.metadata))


def takers(name: str) -> tuple[str, ...]:
    """The metrics that have a parameter of this name."""
    return tuple(metric for metric in metric_names() if takes(metric, name))


def takes(metric: str, name: str) -> bool:
    return name in find_metric(metric).params.model_fields


def spread(metrics: Mapping[str, Mapping[str, Any]], spec: EvalSpec) -> dict[str, dict[str, Any]]:
    """The metrics, each with what it leaves open of the parameters that `evaluate` gives."""
    given = {name: value for name in shared_names() if (value := getattr(spec, name))}
    return {
        metric: {**{name: value for name, value in given.items() if takes(metric, name)}, **params}
        for metric, params in metrics.items()
    }


def unused(spec: EvalSpec, metrics: Mapping[str, object]) -> Iterator[str]:
    """The parameters that `evaluate` gives and that none of its metrics has."""
    for name in shared_names():
        if getattr(spec, name) and not any(takes(metric, name) for metric in metrics):
            yield name


def spread_tree(root: Node) -> Node:
    """The tree of a recipe, its metrics with the parameters that `evaluate` gives, each at the place where it is given."""
    evaluate = root.fields.get("evaluate")
    metrics = evaluate.fields.get("metrics") if evaluate else None
    named = {name: evaluate.fields[name] for name in shared_names() if name in evaluate.fields} if evaluate else {}
    given = {name: node for name, node in named.items() if isinstance(node.value, str) and node.value}
    if evaluate is None or metrics is None or not metrics.entries or not given:
        return root
    filled = replace(metrics, value=[_filled(entry, given) for entry in metrics.entries])
    changed = replace(evaluate, value={**evaluate.fields, "metrics": filled})
    return replace(root, value={**root.fields, "evaluate": changed})


def _filled(entry: Node, given: Mapping[str, Node]) -> Node:
    """An entry of `metrics`: `name`, `name:` or `name: {…}`; as it is where it is none of these."""
    name, params = (entry.value, None) if isinstance(entry.value, str) else next(iter(entry.fields.items()), ("", None))
    own = {key: node for key, node in given.items() if name in metric_names() and takes(name, key)}
    odd = params is not None and params.value is not None and not isinstance(params.value, dict)
    if not own or odd or len(entry.fields) > 1:
        return entry
    place, key = (params.place, params.key) if params else (entry.place, entry.place)
    whole = Node({**own, **(params.fields if params else {})}, place, key)
    return Node({name: whole}, entry.place, entry.key)
