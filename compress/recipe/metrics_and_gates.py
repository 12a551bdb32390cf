"""What a recipe measures, and the gates on it, read."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from compress.catalogue import find_metric, metric_names
from compress.errors import Problem, UserError, near
from compress.params import Params, placed
from compress.recipe.entries import MAX_ENTRIES, check_length, read_entry
from compress.recipe.gates import Gate
from compress.recipe.validate import check_params, given
from compress.recipe.values import EvalSpec, started
from compress.recipe.yaml_tree import Node


@dataclass(frozen=True)
class Measured:
    """What `evaluate` says.

    spec: None where something beside its metrics has mistakes.
    names: of every metric there, sound or not, so that one mistake is reported once.
    sound: whether no mistake hides something of the rest.
    """

    spec: EvalSpec | None
    names: frozenset[str]
    sound: bool


def read_evaluate(node: Node, problems: list[Problem]) -> Measured:
    """What is measured; what is wrong with it is added to `problems`."""
    before = len(problems)
    rest = {key: child for key, child in node.fields.items() if key != "metrics"}
    values = Node(rest, node.place, node.key) if isinstance(node.value, dict) else node
    spec = check_params(EvalSpec, values, "evaluate", problems, also=("metrics",))
    metrics, harmless = _metrics(node.fields.get("metrics"), problems)
    whole = spec.model_copy(update={"metrics": metrics}) if spec else None
    return Measured(whole, frozenset(metrics), len(problems) - before == harmless)


def _metrics(node: Node | None, problems: list[Problem]) -> tuple[dict[str, dict[str, Any]], int]:
    """The metrics with their parameters, and how many of the mistakes hide nothing of the rest."""
    found: dict[str, dict[str, Any]] = {}
    harmless = 0
    if node is None or node.value is None:
        return found, harmless
    if not isinstance(node.value, list):
        message = f"evaluate.metrics must be a list, not {given(node.value)}"
        problems.append(Problem(node.at, message, "metrics: [latency, size]"))
        return found, harmless
    check_length(node, "evaluate.metrics", problems)
    for entry in node.entries[:MAX_ENTRIES]:
        pair = read_entry(entry, "a metric", problems)
        if pair is None:
            continue
        name, params = pair
        if name in found:
            harmless += 1
            problems.append(Problem(entry.place, f"metric `{name}` is named twice", "keep one of them"))
        found[name] = _metric(entry, name, params, problems)
    return found, harmless


def _metric(entry: Node, name: str, params: Node, problems: list[Problem]) -> dict[str, Any]:
    try:
        cls = find_metric(name).params
    except UserError as error:
        problems += [Problem(entry.place, p.message, p.fix) for p in error.problems]
        return {}
    checked = check_params(cls, params, name, problems)
    return checked.model_dump(mode="json") | _started(cls, params) if checked is not None else {}


def _started(cls: type[Params], params: Node) -> dict[str, str]:
    """The fields that name something on disk, a relative path starting at the folder of the recipe it is written in."""
    given = {name: node for name in placed(cls) if (node := params.fields.get(name)) and node.value}
    return {name: started(str(node.value), node.place) for name, node in given.items()}


def read_gates(root: Node, measured: Collection[str], problems: list[Problem]) -> dict[str, Gate]:
    """The gates of the recipe on metrics that are measured; what is wrong with any is added to `problems`."""
    node = root.fields.get("gates")
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        message = f"gates must be a mapping, not {given(node.value)}"
        problems.append(Problem(node.at, message, "gates: {latency: {faster: 2}}"))
        return {}
    found: dict[str, Gate] = {}
    check_length(node, "gates", problems)
    for name, child in list(node.fields.items())[:MAX_ENTRIES]:
        if name not in measured and not _misspelt(name, measured):
            problems.append(_unmeasured(name, child, root, measured))
        gate = _gate(name, child, problems)
        if gate is not None and name in measured:
            found[name] = gate
    return found


def _gate(name: str, node: Node, problems: list[Problem]) -> Gate | None:
    if (unbound := _unbound(name, node.value)) is not None:
        problems.append(Problem(node.place, *unbound))
        return None
    gate = check_params(Gate, node, f"gates.{name}", problems)
    if gate is not None and (why := gate.miscounted()):
        over = "; one that `extends` brings is taken away by `null`" if gate.given else ""
        fix = f"gates: {{{name}: {{within: 1%}}}}{over}; `pare explain gates`"
        problems.append(Problem(node.at, f"gates.{name}: {why}", fix))
        return None
    return gate


def _unmeasured(name: str, node: Node, root: Node, measured: Collection[str]) -> Problem:
    inherited = node.key.rsplit(":", 2)[0] != root.place.rsplit(":", 2)[0]
    fix = (
        f"add `{name}` to evaluate.metrics" + f", or take the gate away: gates: {{{name}: null}}" * inherited
        if name in metric_names()
        else near(name, tuple(sorted(measured)))
    )
    return Problem(node.key, f"gates.{name}: this metric is not in evaluate.metrics", fix)


def _unbound(name: str, given: Any) -> tuple[str, str] | None:
    """What is wrong with a gate that is a margin alone or nothing, and what to write; None of anything else."""
    if given is None:
        fix = (
            "give a bound (`pare explain gates`); null takes away a gate that `extends` brings, and it brings none here"
        )
        return f"gates.{name} must be a mapping, not nothing", fix
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        return None
    word = "worse_by" if name not in metric_names() or find_metric(name).quality else "speedup"
    fix = f"gates: {{{name}: {{{word}: {given}}}}}, or --set gates.{name}.{word}={given}; `pare explain gates`"
    return f"gates.{name} must be a mapping of a bound, not {given!r} alone", fix


def _misspelt(name: str, measured: Iterable[str]) -> bool:
    """Whether a metric is measured under a misspelt name, which is reported there."""
    meant = (near(other, metric_names()) for other in measured if other not in metric_names())
    return any(message.startswith("did you mean") and f"`{name}`" in message for message in meant)
