"""One recipe file to the trees of all the recipes it stands for: `extends`, `--set`, `vars` and `matrix`, in this order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.catalogue import metric_names, stage_names
from compress.errors import Problem, RecipeError, near
from compress.recipe.keep import gathered
from compress.recipe.merge import GATES, METRICS, merged, named
from compress.recipe.validate import given
from compress.recipe.yaml_tree import MAX_BYTES, MAX_DEPTH, MAX_NODES, Node, parse_tree

MAX_RECIPES = 256
MAX_EXTENDS = 20
OVERRIDE = "--set"
LISTS = (("stages",), METRICS)  # whose entries have names

_VARIABLE = re.compile(r"\$\{([^${}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def read_file(path: Path, place: str = "") -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: it is absent, unreadable, too large or not UTF-8.
    """
    place = place or str(path)
    try:
        if path.is_dir():
            message, fix = _of_folder(path)
            raise RecipeError((Problem(place, message if place == str(path) else f"{path} {message}", fix),))
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError((Problem(place, f"{path} is not UTF-8 text", "save it as UTF-8"),)) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RecipeError((Problem(place, f"{path} cannot be read: {why}", "check the path"),)) from error


def _of_folder(path: Path) -> tuple[str, str]:
    """What a folder is that was given for a recipe, and what to do with it."""
    if any((path / name).is_file() for name in ("config.json", "model_index.json", "pare.json")):
        fix = f"write a recipe with model: {path} (`pare explain recipe`), or compare it: pare eval {path} BASELINE"
        return "is a model's folder, and no recipe", fix
    found = sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
    names = ", ".join(str(one) for one in found[:3])
    return (
        "is a folder, and no recipe",
        f"name the file: {names}" if found else "`pare explain recipe` tells how one is written",
    )


def extended(root: Node, file: str, chain: tuple[Path, ...] = ()) -> Node:
    """`root` laid over the recipe it extends, as `merged` says.

    Raises:
        RecipeError: the other recipe does not read, or extends this one in turn.
    """
    if not isinstance(root.value, dict):
        raise RecipeError(
            (Problem(root.place, f"a recipe is a mapping, not {given(root.value)}", "start with `schema: 1`"),)
        )
    link = root.fields.get("extends")
    here = Path(file).absolute()
    if link is None:
        return root
    if not isinstance(link.value, str) or not link.value:
        raise RecipeError(
            (Problem(link.at, f"extends must be a file, not {given(link.value)}", "extends: other.yaml"),)
        )
    other = Path(file).parent / link.value
    text, chain = read_file(other, link.place), (*chain, here.resolve())  # first of all, for not every text is a path
    if other.resolve() in chain or len(chain) > MAX_EXTENDS:
        names = " → ".join(path.name for path in (*chain, other))
        raise RecipeError((Problem(link.place, f"extends goes in a circle: {names}", "remove one `extends:`"),))
    base = extended(parse_tree(text, str(other)), str(other), chain)
    own = {key: node for key, node in root.fields.items() if key != "extends"}
    return Node(merged(base, Node(own, root.place)).value, root.place)


def overridden(root: Node, overrides: Sequence[str], problems: list[Problem], place: str = OVERRIDE) -> Node:
    """`root` with each `path=value` put in; values are YAML, and `place` is theirs."""
    root = gathered(root)
    for override in overrides:
        path, equals, text = override.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts) or len(parts) > MAX_DEPTH // 2:
            problems.append(Problem(place, f"`{override[:80]}` is not path=value", f"{place} stages.0.ratio=0.3"))
            continue
        here = f"{place} {path.strip()}" if ":" not in path else place  # a colon would seem to stand before a line
        try:
            root = gathered(_put(root, parts, parse_tree(text or "~", here, fixed_place=True), ()))
        except RecipeError as error:
            problems += [Problem(here, p.message, p.fix) for p in error.problems]
    return root


@dataclass
class Variant:
    """One combination of the matrix: its tree without `vars` and `matrix`, and what to append to the name.

    `unfilled` are the places where a variable is unknown: whatever else seems wrong there follows from that.
    """

    root: Node
    suffix: str
    unfilled: frozenset[str] = frozenset()


def variants(root: Node, problems: list[Problem]) -> list[Variant]:
    """Every recipe that `root` stands for: one, or one per combination of its `matrix`."""
    fields = dict(root.fields)
    variables = _variables(fields.pop("vars", None), "vars", problems)
    axes = _variables(fields.pop("matrix", None), "matrix", problems)
    for name, node in list(axes.items()):
        if not node.entries:
            problems.append(Problem(node.at, f"matrix.{name} must be a list of values", f"{name}: [1, 2]"))
            del axes[name]
    body = Node(fields, root.place)
    _check_axes(axes, problems)
    count = 1
    for node in axes.values():
        count *= len(node.entries)
    if count > MAX_RECIPES:
        first = next(iter(axes.values()))
        problems.append(Problem(first.at, f"the matrix makes {count} recipes; at most {MAX_RECIPES}", "split it"))
        return []
    found: list[Variant] = []
    used: set[str] = set()
    for combination in itertools.product(*(node.entries for node in axes.values())):
        chosen = dict(zip(axes, combination, strict=True))
        filling = _Filling({**variables, **chosen}, problems)
        suffix = "".join(f"-{name}-{_slug(node.plain())}" for name, node in chosen.items())
        found.append(Variant(filling.fill(body), suffix, frozenset(filling.unfilled)))
        used |= filling.used
    problems += _unused(variables, axes, used, root)
    return found


def _unused(
    variables: Mapping[str, Node], axes: Mapping[str, Node], used: Collection[str], root: Node
) -> Iterator[Problem]:
    """Variables and axes that stand nowhere; those of a recipe that this one extends may."""
    named = {
        name for node in (*variables.values(), *axes.values()) for t in _texts(node) for name in _VARIABLE.findall(t)
    }
    own = {name: node for name, node in variables.items() if _NAME.fullmatch(name) and not _inherited(node, root)}
    for key, those in (("vars", own), ("matrix", axes)):
        for name, node in those.items():
            if name not in used and name not in named:
                fix = f"write ${{{name}}} where it belongs, or remove it"
                yield Problem(node.at, f"{key}.{name} is used nowhere", fix)


def _inherited(node: Node, root: Node) -> bool:
    """Whether a value comes of a recipe that this one extends, all of which need not be left."""
    return not node.at.startswith(OVERRIDE) and node.at.rsplit(":", 2)[0] != root.place.rsplit(":", 2)[0]


def _check_axes(axes: Mapping[str, Node], problems: list[Problem]) -> None:
    for name, node in axes.items():
        seen: set[str] = set()
        for entry in node.entries:
            slug = _slug(entry.plain())
            if slug in seen:
                problems.append(
                    Problem(entry.place, f"matrix.{name} has two values that would share the name `{slug}`", "keep one")
                )
            seen.add(slug)


def _variables(node: Node | None, key: str, problems: list[Problem]) -> dict[str, Node]:
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        problems.append(
            Problem(node.at, f"{key} must be a mapping, not {given(node.value)}", f"{key}: {{name: value}}")
        )
        return {}
    for name, value in node.fields.items():
        if not _NAME.fullmatch(name):
            problems.append(
                Problem(value.key or value.place, f"{key}: `{name[:60]}` is no variable name", "letters, digits and _")
            )
        if any(_VARIABLE.search(text) for text in _texts(value)):
            problems.append(Problem(value.at, f"{key}.{name} refers to a variable", "give the value itself"))
    return dict(node.fields)


def _texts(node: Node) -> Iterator[str]:
    if isinstance(node.value, str):
        yield node.value
    for _, child in node.children():
        yield from _texts(child)


@dataclass
class _Filling:
    """Puts variables into scalars. A scalar that is one variable and nothing else takes the variable's type."""

    variables: Mapping[str, Node]
    problems: list[Problem]
    used: set[str] = field(default_factory=set)
    unfilled: set[str] = field(default_factory=set)
    nodes: int = 0

    def fill(self, node: Node) -> Node:
        if isinstance(node.value, dict):
            self.refuse_keys(node)
            return Node({key: self.fill(child) for key, child in node.fields.items()}, node.place, node.key)
        if isinstance(node.value, list):
            return Node([self.fill(child) for child in node.entries], node.place, node.key)
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        whole = _VARIABLE.fullmatch(node.value)
        value = self.look_up(whole[1], node) if whole else _VARIABLE.sub(lambda m: self.text(m[1], node), node.value)
        return Node(value, node.place, node.key)

    def refuse_keys(self, node: Node) -> None:
        """Variables are put into values alone: a key that holds one is reported, and not taken for a name."""
        for key, child in node.fields.items():
            if names := _VARIABLE.findall(key):
                for name in names:
                    self.meant(name)
                self.unfilled |= {node.place, child.key}
                fix = "write the name itself; a stage or a metric without parameters may be a value: - ${name}"
                self.problems.append(Problem(child.key, f"`{key[:60]}` is a key, and variables stand in values", fix))

    def meant(self, name: str) -> None:
        """Note that a name was to be used, though it is none, or stands where none may: one mistake is reported once."""
        message = near(name, tuple(self.variables)) if name else ""
        self.used |= {known for known in self.variables if not name or known == name or f"`{known}`" in message}

    def look_up(self, name: str, node: Node) -> Any:
        if name not in self.variables:
            self.unfilled.add(node.place)
            fix = near(name, tuple(self.variables)) if self.variables and name else "define it under `vars:`"
            message = f"no variable is called `{name[:60]}`" if name else "`${}` names no variable"
            fix = fix if name else "write ${name}, and define `name` under `vars:`"
            self.meant(name)
            self.problems.append(Problem(node.place, message, fix))
            return None
        self.used.add(name)
        found = self.variables[name]
        self.nodes += found.size()
        if self.nodes > MAX_NODES:
            raise RecipeError(
                (Problem(node.place, f"more than {MAX_NODES:,} values once variables are filled in", "use fewer"),)
            )
        return found.value

    def text(self, name: str, node: Node) -> str:
        value = self.look_up(name, node)
        if isinstance(value, (dict, list)):
            self.problems.append(
                Problem(node.place, f"`${{{name}}}` is {given(value)} and cannot be part of a text", "use it alone")
            )
            return ""
        return value if isinstance(value, str) else given(value)


def _slug(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", value if isinstance(value, str) else given(value)).strip("-.")[:40] or "x"


def _put(node: Node, parts: Sequence[str], value: Node, above: tuple[str, ...]) -> Node:
    """`node` with `value` at `parts`; an entry of `stages` or `metrics` stands for its parameters."""
    if not parts:
        return Node(value.value, value.place, value.place)
    head = parts[0]
    if len(parts) == 1 and value.value is None and (left := _taken_away(node, head, above)) is not None:
        return left
    if above == METRICS and (at := named(node.entries, head)) is not None:
        parts, head = (str(at), *parts[1:]), str(at)
    if (above[:1] == ("stages",) and len(above) == 2) or (above[:2] == ("evaluate", "metrics") and len(above) == 3):
        return _put_into_step(node, parts, value, above)
    if isinstance(node.value, list):
        if not head.isascii() or not head.isdigit() or len(head) > 9 or int(head) >= len(node.value):
            raise RecipeError(
                (Problem(value.place, f"`{'.'.join(above)}` has no entry `{head}`", _numbers(node.entries, above)),)
            )
        entries = list(node.entries)
        if above in LISTS and (meant := _elsewhere(entries, int(head), parts[1:])):
            here, there = ".".join((*above, head)), ".".join((*above, *meant))
            message = f"`{here}` is `{_name(entries[int(head)])}`, not `{_name(entries[int(meant[0])])}`"
            raise RecipeError((Problem(value.place, message, f"write {there}"),))
        entries[int(head)] = _put(entries[int(head)], parts[1:], value, (*above, head))
        return Node(entries, node.place, node.key)
    if node.value is not None and not isinstance(node.value, dict):
        raise RecipeError(
            (Problem(value.place, f"`{'.'.join(above)}` is {given(node.value)} and has no `{head}`", "set it whole"),)
        )
    child = node.fields.get(head, Node(None, value.place, value.place))
    return Node({**node.fields, head: _put(child, parts[1:], value, (*above, head))}, node.place, node.key)


def _taken_away(node: Node, name: str, above: tuple[str, ...]) -> Node | None:
    """`node` without the gate or the metric of this name; None where it holds none."""
    if above == GATES and name in node.fields:
        return Node({key: child for key, child in node.fields.items() if key != name}, node.place, node.key)
    at = named(node.entries, name) if above == METRICS else None
    return None if at is None else Node([*node.entries[:at], *node.entries[at + 1 :]], node.place, node.key)


def _name(entry: Node) -> str:
    """What an entry of `stages` or `metrics` is called."""
    return entry.value if isinstance(entry.value, str) else next(iter(entry.fields), given(entry.value))


def _numbers(entries: Sequence[Node], above: tuple[str, ...]) -> str:
    """The numbers that entries go by, with their names where they have some."""
    if not entries:
        return "it is empty"
    if above not in LISTS:
        return f"0 to {len(entries) - 1}"
    return "write a number: " + ", ".join(f"{number} is {_name(entry)}" for number, entry in enumerate(entries[:20]))


def _elsewhere(entries: Sequence[Node], at: int, parts: Sequence[str]) -> tuple[str, ...]:
    """The path behind the list that `parts` are meant to be, if they begin with the name of another entry; else ()."""
    for number, entry in enumerate(entries):
        words = _name(entry).split(".")
        if _name(entry) != _name(entries[at]) and len(parts) > len(words) and list(parts[: len(words)]) == words:
            return str(number), *parts
    return ()


def _put_into_step(node: Node, parts: Sequence[str], value: Node, above: tuple[str, ...]) -> Node:
    """A parameter is named behind the entry's number, or behind its number and its name: `stages.0.prune.width.ratio`."""
    fields = {node.value: Node(None, node.place, node.place)} if isinstance(node.value, str) else node.fields
    if len(fields) != 1:
        return node  # not a step at all, which is reported at its own place
    name, params = next(iter(fields.items()))
    own = _behind_name(name, parts, value)
    if own == parts and (other := _other_name(name, parts, stage_names() if above[0] == "stages" else metric_names())):
        here = ".".join(above)
        fix = f"write {here}.{name}.PARAMETER, or {here}.PARAMETER"
        raise RecipeError((Problem(value.place, f"`{here}` is `{name}`, not `{other}`", fix),))
    return Node({name: _put(params, own, value, (*above, name))}, node.place, node.key)


def _behind_name(name: str, parts: Sequence[str], value: Node) -> Sequence[str]:
    """`parts` without the entry's name in front, where it is; a parameter may be called like its metric."""
    words = name.split(".")
    if list(parts[: len(words)]) != words:
        return parts
    return parts[len(words) :] if len(parts) > len(words) or isinstance(value.value, dict) else parts


def _other_name(name: str, parts: Sequence[str], known: Sequence[str]) -> str:
    """The other stage or metric that `parts` begin with, or "": no parameter is named before what belongs to it."""
    names = (".".join(parts[:n]) for n in range(1, len(parts)))
    return next((other for other in names if other in known and other != name), "")
