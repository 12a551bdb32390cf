"""The stages of a recipe, read: each with its id, its parameters, and the steps and models that it is given."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from compress.catalogue import find_stage
from compress.errors import Problem, UserError, near
from compress.recipe.entries import MAX_ENTRIES, check_length, is_text, read_entry
from compress.recipe.keep import KEEP, read_keep
from compress.recipe.model_names import MODELS, SAFE, is_model_name, model_problems
from compress.recipe.validate import check_params, given
from compress.recipe.values import STEP_KEYS, StepSpec, is_model, started
from compress.recipe.yaml_tree import Node

SOURCE = "source"


def read_steps(node: Node | None, problems: list[Problem]) -> tuple[tuple[StepSpec, ...], list[str]]:
    """The stages without mistakes, and the ids of all; no ids where a stage has no name."""
    if node is None or node.value is None:
        return (), []
    if not isinstance(node.value, list):
        message = f"stages must be a list, not {given(node.value)}"
        problems.append(Problem(node.at, message, "- stage.name: {parameter: value}"))
        return (), []
    check_length(node, "stages", problems)
    entries = [
        (entry, *pair)
        for entry in node.entries[:MAX_ENTRIES]
        if (pair := read_entry(entry, "a stage", problems)) is not None
    ]
    written = (params.fields.get("id") for _, _, params in entries)
    reader = _StepReader({id.value for id in written if id is not None and is_text(id)}, problems)
    steps = [reader.step(*one) for one in entries]
    named = len(reader.ids) == len(node.entries)
    return tuple(step for step in steps if step is not None), reader.ids if named else []


class _StepReader:
    """Reads one stage after the other; `ids` are those so far, also of stages with mistakes.

    taken: the ids that stages are given anywhere in the recipe.
    """

    def __init__(self, taken: Collection[str], problems: list[Problem]) -> None:
        self.taken = taken
        self.problems = problems
        self.ids: list[str] = []

    def step(self, entry: Node, name: str, params: Node) -> StepSpec | None:
        """One stage, whose id is taken from now on; None where it has mistakes."""
        try:
            stage = find_stage(name)
        except UserError as error:
            self.problems += [Problem(entry.place, p.message, p.fix) for p in error.problems]
            self.ids.append(self.step_id(name, params.fields.get("id")))
            return None
        cls = stage.params
        keys = (*STEP_KEYS, *stage.inputs)
        reserved = {k: n for k, n in params.fields.items() if k in keys and k not in cls.model_fields}
        own = {k: n for k, n in params.fields.items() if k not in reserved}
        after = self.earlier(reserved.get("from"), "from") or (self.ids[-1] if self.ids else SOURCE)
        named = {role: reserved[role] for role in stage.inputs if role in reserved}
        inputs = {role: found for role, node in named.items() if (found := self.input(node, role))}
        step_id = self.step_id(name, reserved.get("id"))
        self.ids.append(step_id)
        if_faster = read_keep(reserved.get(KEEP), self.problems)
        values = params if not isinstance(params.value, dict) else Node(own, params.place, params.key)
        checked = check_params(cls, values, name, self.problems, also=keys)
        if checked is None:
            return None
        places = {role: node.at for role, node in named.items()}
        return StepSpec(step_id, name, checked, after, inputs, entry.place, if_faster, places)

    def step_id(self, name: str, node: Node | None) -> str:
        if node is not None:
            if not is_text(node) or not SAFE.fullmatch(node.value) or node.value == SOURCE:
                message = f"id {given(node.value)} is no id"
                self.problems.append(Problem(node.at, message, f"letters, digits, `.`, `_`, `-`; not `{SOURCE}`"))
            elif node.value in self.ids:
                message = f"id {given(node.value)} is already taken by an earlier step"
                self.problems.append(Problem(node.at, message, "give another"))
            else:
                return str(node.value)
        numbered = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
        return next(one for one in numbered if one not in self.taken and one not in self.ids)

    def input(self, node: Node, role: str) -> str:
        """What a step is given beside what it continues: an earlier step, the source, or a model of its own."""
        if not is_text(node) or not is_model_name(node.value):
            return self.earlier(node, role, f"; or a model of its own: {MODELS}")
        self.problems += model_problems(node, node.value, role)
        found = started(str(node.value), node.place)
        return found if is_model(found) else f"./{found}"

    def earlier(self, node: Node | None, key: str, otherwise: str = "") -> str:
        """The id of an earlier step; "" where none is given, or what is given is none."""
        if node is None:
            return ""
        if is_text(node) and node.value in (SOURCE, *self.ids):
            return str(node.value)
        known = (*self.ids, SOURCE)
        fix = near(str(node.value), known) if is_text(node) else f"the id of an earlier step, or `{SOURCE}`"
        message = f"{key}: no earlier step is called {given(node.value)}"
        self.problems.append(Problem(node.at, message, fix + otherwise))
        return ""
