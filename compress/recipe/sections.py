"""What the sections of a recipe's tree say, as values: every default filled in, every mistake at its line and column."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compress.catalogue import find_metric, find_stage, metric_names
from compress.endpoints.address import COMPARED, NO_MODEL, is_address, plain
from compress.errors import Problem, RecipeError, UserError, near
from compress.files.user_paths import BESIDE, file_and_config
from compress.params import Params, placed
from compress.recipe.adapters import read_adapters
from compress.recipe.checkpoints import as_reference
from compress.recipe.controls import naming_problems
from compress.recipe.expand import OVERRIDE, overridden
from compress.recipe.gates import Gate
from compress.recipe.keep import KEEP, gathered, kept_twice, read_keep
from compress.recipe.shared_parameters import spread_tree
from compress.recipe.validate import check_params, given
from compress.recipe.values import (
    SCHEMA_VERSION,
    STEP_KEYS,
    DataSpec,
    EvalSpec,
    Head,
    Recipe,
    StepSpec,
    is_model,
    started,
)
from compress.recipe.yaml_tree import Node

T = TypeVar("T")
SOURCE = "source"
CHANGED = "with_"  # the place of what `Recipe.with_` puts in
MAX_ENTRIES = 200  # stages, metrics or gates

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDER = re.compile(r"(\.{0,2}/|~/|\.{1,2}$)")
_HUB = re.compile(r"hf://[\w.-]+/[\w.-]+@[0-9a-f]{40}")
MODELS = "zoo://NAME, a folder as ./folder, or hf://org/name@<40-hex commit>"


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
        recipe = Reading(root, problems).recipe("", self.text, self.file) if check_schema(root, problems) else None
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


class Reading:
    """One tree, variables filled in, on its way to a `Recipe`; mistakes gather in `problems`."""

    def __init__(self, root: Node, problems: list[Problem]) -> None:
        self.whole = gathered(root)
        self.root = spread_tree(self.whole)
        self.problems = problems
        self.ids: list[str] = []  # of all stages, also of those with mistakes; none where there are some without a name
        self.harmless = 0  # of them, which hide nothing of the rest

    def recipe(self, suffix: str, text: str, file: str) -> Recipe | None:
        """The recipe. With mistakes in it: the parts that can be judged without those that have some; None without a model."""
        for key, node in self.root.fields.items():
            if key in TOP_KEYS and key not in SECTIONS:
                self.problem(node.key, f"{key} is filled in already", "change the values that it gave")
            elif key not in SECTIONS:
                self.problem(node.key, f"{key}: unknown key", near(key, TOP_KEYS))
        head = self.head(suffix)
        adapters = read_adapters(self.root.fields.get("adapter"), self.problems)
        data, given = self.sound(self.data)
        stages = self.steps()
        (evaluate, measured), judged = self.sound(self.evaluate)
        self.controls()
        gates = self.gates(measured)
        if head is None:
            return None
        # Without its data a stage or a metric would seem to lack some.
        data = data if data is not None and given else DataSpec()
        stages = stages if given else ()  # what continues one that has mistakes is not looked at
        evaluate = evaluate if evaluate is not None and given and judged else EvalSpec()
        return Recipe(
            name=head.name + suffix,
            model=head.model,
            adapters=adapters,
            seed=head.seed,
            device=head.device,
            trust_remote_code=head.trust_remote_code,
            data=data,
            stages=stages,
            evaluate=evaluate,
            gates=gates,
            place={"": self.root.place, **dict(_places(self.root, ()))},
            source=text,
            file=file,
            origin=None if self.problems else Filled(_renamed(self.whole, head.name + suffix), text, file),
        )

    def problem(self, place: str, message: str, fix: str = "") -> None:
        self.problems.append(Problem(place, message, fix))

    def sound(self, read: Callable[[], T]) -> tuple[T, bool]:
        """What `read` gives, and whether it found no mistake but harmless ones."""
        before = len(self.problems) - self.harmless
        return read(), len(self.problems) - self.harmless == before

    def head(self, suffix: str) -> Head | None:
        """The head; of one with mistakes, its model and what else of it is sound; None where that is not."""
        fields = {key: node for key, node in self.root.fields.items() if key in Head.model_fields}
        if (model := fields.get("model")) and (named := as_reference(model, self.problems)) is not model:
            fields = {key: node for key, node in fields.items() if key != "model"} | ({"model": named} if named else {})
            if named is None:
                return None
        head = check_params(Head, Node(fields, self.root.place), "", self.problems)
        self.named_well(fields, suffix)
        if head is None:
            wrong = {problem.place for problem in self.problems}
            rest = {"name": Node("", ""), **{key: node for key, node in fields.items() if node.at not in wrong}}
            head = check_params(Head, Node(rest, self.root.place), "", []) if "model" in rest else None
        return head

    def named_well(self, fields: Mapping[str, Node], suffix: str) -> None:
        name, model = fields.get("name"), fields.get("model")
        if name and isinstance(name.value, str) and not _SAFE.fullmatch(name.value + suffix):
            self.problem(
                name.at,
                f"name {given(name.value)} cannot name a file",
                "letters, digits, `.`, `_` and `-`; at most 100",
            )
        if model and isinstance(model.value, str):
            self.model(model, model.value)

    def model(self, node: Node, model: str, key: str = "model") -> None:
        file, config = file_and_config(model, Path(node.at.rsplit(":", 2)[0]).parent)
        if config:
            if not _FOLDER.match(file):
                fix = f"./{file.strip('/') or 'x.safetensors'}{BESIDE}{config}"
                self.problem(node.at, f"{key} {given(file)} is no file, as what stands before `{BESIDE}` is", fix)
            self.model(node, config, f"{key}: config")
        elif model.startswith("hf://"):
            if not _HUB.fullmatch(model):
                fix = "write hf://org/name@<40-hex commit>; `pare check --pin` finds the commit"
                self.problem(node.at, f"{key} {model} is not pinned to a commit, so a run could not be repeated", fix)
        elif model.startswith("zoo://"):
            if not _SAFE.fullmatch(model.removeprefix("zoo://")):
                self.problem(
                    node.at, f"{key} {given(model)} is no name in the zoo", "zoo://NAME; `pare list` shows them"
                )
        elif is_address(model):
            self.problem(node.at, f"{key} {given(plain(model))} {NO_MODEL}", COMPARED)
        elif not _FOLDER.match(model):
            name = model if model.strip("/") and "://" not in model and model.isprintable() else "NAME"
            fix = f"a folder is ./{name}, a model of the hub hf://{name}@<40-hex commit>, one of the zoo zoo://NAME"
            self.problem(node.at, f"{key} {given(model)} is neither a zoo model, a folder nor a hub model", fix)

    def data(self) -> DataSpec | None:
        return check_params(DataSpec, self.root.fields.get("data") or Node({}, self.root.place), "data", self.problems)

    def steps(self) -> tuple[StepSpec, ...]:
        node = self.root.fields.get("stages")
        if node is None or node.value is None:
            return ()
        if not isinstance(node.value, list):
            self.problem(node.at, f"stages must be a list, not {given(node.value)}", "- stage.name: {parameter: value}")
            return ()
        self.check_length(node, "stages")
        entries = [
            (entry, *pair) for entry in node.entries[:MAX_ENTRIES] if (pair := self.named(entry, "a stage")) is not None
        ]
        taken = {
            params.fields["id"].value
            for _, _, params in entries
            if "id" in params.fields and is_text(params.fields["id"])
        }
        ids: list[str] = []
        steps: list[StepSpec | None] = []
        for entry, name, params in entries:
            steps.append(self.step(entry, name, params, ids, taken))
        self.ids = ids if len(ids) == len(node.entries) else []
        return tuple(step for step in steps if step is not None)

    def check_length(self, node: Node, what: str) -> None:
        if len(node.value) > MAX_ENTRIES:
            self.problem(node.at, f"{what} has {len(node.value)} entries; at most {MAX_ENTRIES}", "split the recipe")

    def step(self, entry: Node, name: str, params: Node, ids: list[str], taken: set[str]) -> StepSpec | None:
        """One stage; `ids` are those of the steps before it, and gains its own, even when the stage has problems."""
        try:
            stage = find_stage(name)
        except UserError as error:
            self.problems += [Problem(entry.place, p.message, p.fix) for p in error.problems]
            ids.append(self.step_id(name, params.fields.get("id"), ids, taken))
            return None
        cls = stage.params
        keys = (*STEP_KEYS, *stage.inputs)
        reserved = {k: n for k, n in params.fields.items() if k in keys and k not in cls.model_fields}
        own = {k: n for k, n in params.fields.items() if k not in reserved}
        after = self.earlier(reserved.get("from"), ids, "from") or (ids[-1] if ids else SOURCE)
        named = {role: reserved[role] for role in stage.inputs if role in reserved}
        inputs = {role: found for role, node in named.items() if (found := self.input(node, ids, role))}
        step_id = self.step_id(name, reserved.get("id"), ids, taken)
        ids.append(step_id)
        if_faster = read_keep(reserved.get(KEEP), self.problems)
        values = params if not isinstance(params.value, dict) else Node(own, params.place, params.key)
        checked = check_params(cls, values, name, self.problems, also=keys)
        if checked is None:
            return None
        places = {role: node.at for role, node in named.items()}
        return StepSpec(step_id, name, checked, after, inputs, entry.place, if_faster, places)

    def named(self, entry: Node, what: str) -> tuple[str, Node] | None:
        """The name and the parameters of `name`, `name:` or `name: {…}`."""
        if is_text(entry):
            return entry.value, Node({}, entry.place, entry.place)
        if not isinstance(entry.value, dict) or not entry.value:
            self.problem(
                entry.at, f"{what} is a name, or one `name: {{parameters}}`, not {given(entry.value)}", "- name: {}"
            )
            return None
        if len(entry.value) > 1:
            names = ", ".join(f"`{key[:60]}`" for key in entry.value)
            fix = "indent the parameters further than the name, and start each name with its own `-`"
            if twice := kept_twice(entry):
                self.problem(*twice)
                return None
            self.problem(
                entry.place, f"{what} is one `name: {{parameters}}`, but here are {len(entry.value)} keys: {names}", fix
            )
            return None
        name, params = next(iter(entry.fields.items()))
        return name, Node({}, params.place, params.key) if params.value is None else params

    def step_id(self, name: str, node: Node | None, ids: Sequence[str], taken: set[str]) -> str:
        if node is not None:
            if not is_text(node) or not _SAFE.fullmatch(node.value) or node.value == SOURCE:
                self.problem(
                    node.at, f"id {given(node.value)} is no id", f"letters, digits, `.`, `_`, `-`; not `{SOURCE}`"
                )
            elif node.value in ids:
                self.problem(node.at, f"id {given(node.value)} is already taken by an earlier step", "give another")
            else:
                return str(node.value)
        numbered = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
        return next(one for one in numbered if one not in taken and one not in ids)

    def input(self, node: Node, ids: Sequence[str], role: str) -> str:
        """What a step is given beside what it continues: an earlier step, the source, or a model of its own."""
        if not is_text(node) or not ("://" in node.value or _FOLDER.match(node.value)):
            return self.earlier(node, ids, role, f"; or a model of its own: {MODELS}")
        self.model(node, node.value, role)
        found = started(str(node.value), node.place)
        return found if is_model(found) else f"./{found}"

    def earlier(self, node: Node | None, ids: Sequence[str], key: str, otherwise: str = "") -> str:
        if node is None:
            return ""
        if not is_text(node) or node.value not in (SOURCE, *ids):
            fix = (
                near(str(node.value), (*ids, SOURCE)) if is_text(node) else f"the id of an earlier step, or `{SOURCE}`"
            )
            self.problem(node.at, f"{key}: no earlier step is called {given(node.value)}", fix + otherwise)
            return ""
        return str(node.value)

    def evaluate(self) -> tuple[EvalSpec | None, set[str]]:
        """What is measured, and every metric named there, sound or not, so that one mistake is reported once."""
        node = self.root.fields.get("evaluate") or Node({}, self.root.place)
        metrics = node.fields.get("metrics")
        rest = {key: child for key, child in node.fields.items() if key != "metrics"}
        values = Node(rest, node.place, node.key) if isinstance(node.value, dict) else node
        spec = check_params(EvalSpec, values, "evaluate", self.problems, also=("metrics",))
        measured = self.metrics(metrics)
        if spec is None:
            return None, set(measured)
        return spec.model_copy(update={"metrics": measured}), set(measured)

    def controls(self) -> None:
        """Whether the controls are steps; that they are text is reported already."""
        node = self.root.fields.get("evaluate")
        node = node.child("controls") if node else None
        if node and isinstance(node.value, list) and (self.ids or not self.root.fields.get("stages")):
            self.problems += naming_problems(((e.value, e.at) for e in node.entries if is_text(e)), self.ids)

    def metrics(self, node: Node | None) -> dict[str, dict[str, Any]]:
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, list):
            self.problem(
                node.at, f"evaluate.metrics must be a list, not {given(node.value)}", "metrics: [latency, size]"
            )
            return {}
        found: dict[str, dict[str, Any]] = {}
        self.check_length(node, "evaluate.metrics")
        for entry in node.entries[:MAX_ENTRIES]:
            pair = self.named(entry, "a metric")
            if pair is None:
                continue
            name, params = pair
            if name in found:
                self.harmless += 1
                self.problem(entry.place, f"metric `{name}` is named twice", "keep one of them")
            found[name] = self.metric(entry, name, params)
        return found

    def metric(self, entry: Node, name: str, params: Node) -> dict[str, Any]:
        try:
            cls = find_metric(name).params
        except UserError as error:
            self.problems += [Problem(entry.place, p.message, p.fix) for p in error.problems]
            return {}
        checked = check_params(cls, params, name, self.problems)
        return checked.model_dump(mode="json") | _started(cls, params) if checked is not None else {}

    def gates(self, measured: set[str]) -> dict[str, Gate]:
        node = self.root.fields.get("gates")
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            self.problem(node.at, f"gates must be a mapping, not {given(node.value)}", "gates: {latency: {faster: 2}}")
            return {}
        found: dict[str, Gate] = {}
        self.check_length(node, "gates")
        for name, child in list(node.fields.items())[:MAX_ENTRIES]:
            if name not in measured and not _misspelt(name, measured):
                inherited = child.key.rsplit(":", 2)[0] != self.root.place.rsplit(":", 2)[0]
                fix = (
                    f"add `{name}` to evaluate.metrics"
                    + f", or take the gate away: gates: {{{name}: null}}" * inherited
                    if name in metric_names()
                    else near(name, tuple(sorted(measured)))
                )
                self.problem(child.key, f"gates.{name}: this metric is not in evaluate.metrics", fix)
            if (unbound := _unbound(name, child.value)) is not None:
                self.problem(child.place, *unbound)
                continue
            gate = check_params(Gate, child, f"gates.{name}", self.problems)
            if gate is not None and (why := gate.miscounted()):
                over = "; one that `extends` brings is taken away by `null`" if gate.given else ""
                fix = f"gates: {{{name}: {{within: 1%}}}}{over}; `pare explain gates`"
                self.problem(child.at, f"gates.{name}: {why}", fix)
            elif gate is not None and name in measured:
                found[name] = gate
        return found


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


def _started(cls: type[Params], params: Node) -> dict[str, str]:
    """The fields that name something on disk, a relative path starting at the folder of the recipe it is written in."""
    given = {name: node for name in placed(cls) if (node := params.fields.get(name)) and node.value}
    return {name: started(str(node.value), node.place) for name, node in given.items()}


def is_text(node: Node) -> bool:
    return isinstance(node.value, str)


def _places(node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The place of every dotted path; an entry of `stages` or `metrics` stands for its parameters."""
    for key, child in node.children():
        here = (*path, key)
        yield ".".join(here), child.at
        inner = child
        if here[:-1] in (("stages",), ("evaluate", "metrics")) and len(child.fields) == 1:
            inner = next(iter(child.fields.values()))
        yield from _places(inner, here)
