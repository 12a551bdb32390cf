"""One tree laid over another, as `extends` does: mappings merge, anything else replaces, and `null` takes an inherited gate or metric
away. A list of metrics is a mapping from name to parameters where a mapping is laid over it."""

from __future__ import annotations

from compress.recipe.yaml_tree import Node

GATES, METRICS = ("gates",), ("evaluate", "metrics")


def merged(base: Node, over: Node, path: tuple[str, ...] = ()) -> Node:
    """`base` with `over` laid over it; both lie at `path` in their recipes."""
    if path == METRICS and base.entries and isinstance(over.value, dict):
        return _metrics(base, over)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    both = dict(base.fields)
    for key, node in over.fields.items():
        if path == GATES and key in both and node.value is None:
            del both[key]
        else:
            both[key] = merged(both[key], node, (*path, key)) if key in both else node
    return Node(both, over.place, over.key)


def named(entries: list[Node], name: str) -> int | None:
    """Where in a list of names and `name: {…}` the entry of this name stands."""
    return next((i for i, one in enumerate(entries) if one.value == name or list(one.fields) == [name]), None)


def _metrics(base: Node, over: Node) -> Node:
    entries = list(base.entries)
    for name, params in over.fields.items():
        at = named(entries, name)
        if at is None:
            entries.append(Node({name: params}, params.key or params.place, params.key))
        elif params.value is None:
            del entries[at]
        else:
            old = entries[at].fields.get(name, Node({}, params.place, params.key))
            under = Node({}, old.place, old.key) if old.value is None else old
            entries[at] = Node({name: merged(under, params)}, params.key or params.place, params.key)
    return Node(entries, over.place, over.key)
