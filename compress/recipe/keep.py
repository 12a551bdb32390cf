"""`keep`, which may stand beside a stage's name in a recipe as well as among its parameters: there `id` and `from` stand too.

- quantize.nncf: {mode: int8}
  keep: if_faster
"""

from __future__ import annotations

from compress.errors import Problem
from compress.recipe.validate import given
from compress.recipe.yaml_tree import Node

KEEP = "keep"
ALWAYS, IF_FASTER = "always", "if_faster"


def gathered(root: Node) -> Node:
    """The tree of a recipe, each `keep` beside a stage's name moved in among its parameters; what cannot be moved stays."""
    stages = root.fields.get("stages")
    if stages is None or not any(KEEP in entry.fields for entry in stages.entries):
        return root
    moved = Node([_moved(entry) for entry in stages.entries], stages.place, stages.key)
    return Node({**root.fields, "stages": moved}, root.place, root.key)


def _moved(entry: Node) -> Node:
    others = [name for name in entry.fields if name != KEEP]
    if KEEP not in entry.fields or len(others) != 1:
        return entry
    params = entry.fields[others[0]]
    if KEEP in params.fields or not (params.value is None or isinstance(params.value, dict)):
        return entry
    inner = Node({**params.fields, KEEP: entry.fields[KEEP]}, params.place, params.key)
    return Node({others[0]: inner}, entry.place, entry.key)


def kept_twice(entry: Node) -> tuple[str, str, str] | None:
    """Where, and that, a step says both among its parameters and beside its name whether it is kept, and what to do; None of another."""
    others = [name for name in entry.fields if name != KEEP]
    if KEEP not in entry.fields or len(others) != 1 or KEEP not in entry.fields[others[0]].fields:
        return None
    return (
        entry.place,
        f"{KEEP} is given twice, beside {others[0]} and among its parameters",
        "leave one of them",
    )


def read_keep(node: Node | None, problems: list[Problem]) -> bool:
    """Whether a step is kept only if it is faster."""
    if node is None or node.value == ALWAYS:
        return False
    if node.value != IF_FASTER:
        message = f"{KEEP} must be {ALWAYS} or {IF_FASTER}, not {given(node.value)}"
        problems.append(Problem(node.at, message, f"{KEEP}: {IF_FASTER}"))
    return True
