"""Entries of a recipe's lists of stages and of metrics, each a name with parameters."""

from __future__ import annotations

from compress.errors import Problem
from compress.recipe.keep import kept_twice
from compress.recipe.validate import given
from compress.recipe.yaml_tree import Node

MAX_ENTRIES = 200  # stages, metrics or gates


def is_text(node: Node) -> bool:
    return isinstance(node.value, str)


def check_length(node: Node, what: str, problems: list[Problem]) -> None:
    if len(node.value) > MAX_ENTRIES:
        message = f"{what} has {len(node.value)} entries; at most {MAX_ENTRIES}"
        problems.append(Problem(node.at, message, "split the recipe"))


def read_entry(entry: Node, what: str, problems: list[Problem]) -> tuple[str, Node] | None:
    """The name and the parameters of `name`, `name:` or `name: {…}`; None of what is none of these."""
    if is_text(entry):
        return entry.value, Node({}, entry.place, entry.place)
    if not isinstance(entry.value, dict) or not entry.value:
        message = f"{what} is a name, or one `name: {{parameters}}`, not {given(entry.value)}"
        problems.append(Problem(entry.at, message, "- name: {}"))
        return None
    if len(entry.value) > 1:
        problems.append(_of_many_keys(entry, what))
        return None
    name, params = next(iter(entry.fields.items()))
    return name, Node({}, params.place, params.key) if params.value is None else params


def _of_many_keys(entry: Node, what: str) -> Problem:
    if twice := kept_twice(entry):
        return Problem(*twice)
    names = ", ".join(f"`{key[:60]}`" for key in entry.value)
    message = f"{what} is one `name: {{parameters}}`, but here are {len(entry.value)} keys: {names}"
    fix = "indent the parameters further than the name, and start each name with its own `-`"
    return Problem(entry.place, message, fix)
