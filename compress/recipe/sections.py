"""What the sections of a recipe's tree say, as values: every default filled in, every mistake at its line and column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compress.errors import Problem, RecipeError, near
from compress.recipe.adapters import read_adapters
from compress.recipe.checkpoints import as_reference
from compress.recipe.controls import naming_problems
from compress.recipe.entries import is_text
from compress.recipe.expand import OVERRIDE, overridden
from compress.recipe.keep import gathered
from compress.recipe.metrics_and_gates import read_evaluate, read_gates
from compress.recipe.model_names import SAFE, model_problems
from compress.recipe.shared_parameters import spread_tree
from compress.recipe.steps import read_steps
from compress.recipe.validate import check_params, given
from compress.recipe.values import SCHEMA_VERSION, DataSpec, EvalSpec, Head, Recipe
from compress.recipe.yaml_tree import Node

CHANGED = "with_"  # the place of what `Recipe.with_` puts in
SECTIONS = ("schema", *Head.model_fields, "adapter", "data", "stages", "evaluate", "gates")
TOP_KEYS = (*SECTIONS, "extends", "vars", "matrix")


@dataclass(frozen=True)
class Filled:
    """A recipe's tree with everything filled in, and the text it came from: an `Origin`."""

    root: Node
    text: str
    file: str

    def changed(self, changes: Sequence[str]) -> Recipe:
        problems: list[Problem] = []
        root = overridden(self.root, changes, problems, CHANGED)
        recipe = read_sections(root, problems, "", self.text, self.file) if check_schema(root, problems) else None
        if problems or recipe is None:
            raise refused(problems)
        return recipe


def _renamed(root: Node, name: str) -> Node:
    """The tree of one variant of a matrix, under the name that it has."""
    old = root.fields["name"]
    return Node({**root.fields, "name": Node(name, old.place, old.key)}, root.place, root.key)


def refused(problems: Sequence[Problem]) -> RecipeError:
    """All of these as one error, in the order of the file."""
    return RecipeError(tuple(sorted(dict.fromkeys(problems), key=_order)))


def _order(problem: Problem) -> tuple[bool, str, int, int]:
    if problem.place.split(" ")[0] in (OVERRIDE, CHANGED):
        return True, "", 0, 0  # behind the file's own, in the order they were given
    file, *numbers = problem.place.rsplit(":", 2)
    line, column = (int(n) for n in numbers) if len(numbers) == 2 and "".join(numbers).isdigit() else (0, 0)
    return False, file, line, column


def check_schema(root: Node, problems: list[Problem]) -> bool:
    """Whether the rest is worth reading: a recipe of a later schema would only seem full of mistakes."""
    node = root.fields.get("schema")
    if node is None:
        problems.append(Problem(root.place, "`schema` is missing", f"start the recipe with `schema: {SCHEMA_VERSION}`"))
    elif not isinstance(node.value, int) or isinstance(node.value, bool) or node.value < 1:
        problems.append(
            Problem(node.at, f"schema must be {SCHEMA_VERSION}, not {given(node.value)}", f"schema: {SCHEMA_VERSION}")
        )
    elif node.value > SCHEMA_VERSION:
        message = f"schema {given(node.value)} is a schema from the future: this pare reads {SCHEMA_VERSION}"
        problems.append(Problem(node.at, message, "upgrade: pip install --upgrade pare"))
        return False
    return True


def read_sections(tree: Node, problems: list[Problem], suffix: str, text: str, file: str) -> Recipe | None:
    """A recipe of a tree whose variables are filled in; its mistakes are added to `problems`. With mistakes in it: the parts that can be
    judged without those that have some; None without a model."""
    whole = gathered(tree)
    root = spread_tree(whole)
    problems += _unknown_keys(root)
    head = _head(root, suffix, problems)
    adapters = read_adapters(root.fields.get("adapter"), problems)
    before = len(problems)
    data = check_params(DataSpec, root.fields.get("data") or Node({}, root.place), "data", problems)
    data_sound = len(problems) == before
    stages, ids = read_steps(root.fields.get("stages"), problems)
    measured = read_evaluate(root.fields.get("evaluate") or Node({}, root.place), problems)
    problems += _control_problems(root, ids)
    gates = read_gates(root, measured.names, problems)
    if head is None:
        return None
    return Recipe(
        name=head.name + suffix,
        model=head.model,
        adapters=adapters,
        seed=head.seed,
        device=head.device,
        trust_remote_code=head.trust_remote_code,
        # Without its data a stage or a metric would seem to lack some.
        data=data if data is not None and data_sound else DataSpec(),
        stages=stages if data_sound else (),  # what continues one that has mistakes is not looked at
        evaluate=measured.spec if measured.spec is not None and data_sound and measured.sound else EvalSpec(),
        gates=gates,
        place={"": root.place, **dict(_places(root, ()))},
        source=text,
        file=file,
        origin=None if problems else Filled(_renamed(whole, head.name + suffix), text, file),
    )


def _unknown_keys(root: Node) -> Iterator[Problem]:
    for key, node in root.fields.items():
        if key in TOP_KEYS and key not in SECTIONS:
            yield Problem(node.key, f"{key} is filled in already", "change the values that it gave")
        elif key not in SECTIONS:
            yield Problem(node.key, f"{key}: unknown key", near(key, TOP_KEYS))


def _head(root: Node, suffix: str, problems: list[Problem]) -> Head | None:
    """The head; of one with mistakes, its model and what else of it is sound; None where that is not."""
    fields = {key: node for key, node in root.fields.items() if key in Head.model_fields}
    if (model := fields.get("model")) and (named := as_reference(model, problems)) is not model:
        fields = {key: node for key, node in fields.items() if key != "model"} | ({"model": named} if named else {})
        if named is None:
            return None
    head = check_params(Head, Node(fields, root.place), "", problems)
    name, model = fields.get("name"), fields.get("model")
    if name and is_text(name) and not SAFE.fullmatch(name.value + suffix):
        message = f"name {given(name.value)} cannot name a file"
        problems.append(Problem(name.at, message, "letters, digits, `.`, `_` and `-`; at most 100"))
    if model and is_text(model):
        problems += model_problems(model, model.value)
    if head is None:
        wrong = {problem.place for problem in problems}
        rest = {"name": Node("", ""), **{key: node for key, node in fields.items() if node.at not in wrong}}
        head = check_params(Head, Node(rest, root.place), "", []) if "model" in rest else None
    return head


def _control_problems(root: Node, ids: Sequence[str]) -> Iterator[Problem]:
    """Controls that are no steps; that they are text is reported already."""
    node = root.fields.get("evaluate")
    node = node.child("controls") if node else None
    if node and isinstance(node.value, list) and (ids or not root.fields.get("stages")):
        yield from naming_problems(((e.value, e.at) for e in node.entries if is_text(e)), ids)


def _places(node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The place of every dotted path; an entry of `stages` or `metrics` stands for its parameters."""
    for key, child in node.children():
        here = (*path, key)
        yield ".".join(here), child.at
        inner = child
        if here[:-1] in (("stages",), ("evaluate", "metrics")) and len(child.fields) == 1:
            inner = next(iter(child.fields.values()))
        yield from _places(inner, here)
