"""YAML text as a tree that remembers the line and column of every key and value, because an error without a place is half
an error. Scalars follow YAML 1.2 (`1e-4` is a number, `on` and `no` are text); what a recipe never needs is refused:
tags, merge keys, several documents, and aliases that expand without end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import yaml

from compress.errors import Problem, RecipeError

MAX_BYTES = 1_000_000
MAX_NODES = 20_000  # after aliases and variables are expanded
MAX_DEPTH = 40
MAX_DIGITS = 40

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Value: TypeAlias = yaml.AliasEvent | yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Node:
    """A scalar, a `list[Node]` or a `dict[str, Node]`. `place` is where it starts, `key` where the key before it does."""

    value: Any
    place: str
    key: str = ""

    @property
    def at(self) -> str:
        """Where to point at: a scalar itself, or the key in front of a list or a mapping."""
        return self.key if self.key and isinstance(self.value, (dict, list)) else self.place

    @property
    def fields(self) -> dict[str, Node]:
        return self.value if isinstance(self.value, dict) else {}

    @property
    def entries(self) -> list[Node]:
        return self.value if isinstance(self.value, list) else []

    def children(self) -> Iterator[tuple[str, Node]]:
        yield from self.fields.items()
        yield from ((str(index), node) for index, node in enumerate(self.entries))

    def child(self, name: str) -> Node | None:
        """The value under a key, or at an index written as text."""
        if name in self.fields:
            return self.fields[name]
        entries = self.entries
        return entries[int(name)] if name.isdecimal() and len(name) < 9 and int(name) < len(entries) else None

    def plain(self) -> Any:
        """The value without places: what `json.dumps` takes."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def size(self) -> int:
        """How many values it holds; long text counts more than once, so that no alias or variable can blow it up."""
        own = 1 + len(self.value) // 100 if isinstance(self.value, str) else 1
        return own + sum(node.size() for _, node in self.children())

    def depth(self) -> int:
        return 1 + max((node.depth() for _, node in self.children()), default=-1)


def parse_tree(text: str, file: str, *, fixed_place: bool = False) -> Node:
    """Read one YAML document. With `fixed_place` every place is `file` itself, for values from the command line.

    Raises:
        RecipeError: it is no YAML, or YAML that a recipe may not use.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise RecipeError(
            (Problem(file, f"is larger than {MAX_BYTES:,} bytes", "a recipe is a page; is this a data file?"),)
        )
    builder = _Builder(file, fixed_place)
    try:
        root = builder.document(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        raise RecipeError((_syntax_problem(text, builder, error),)) from error
    except (yaml.YAMLError, UnicodeError) as error:
        message = "holds characters that YAML does not allow"
        raise RecipeError((Problem(file, message, "save it as UTF-8 text without control characters"),)) from error
    if builder.problems:
        raise RecipeError(tuple(builder.problems))
    return root


def resolve_scalar(text: str) -> Any:
    """A plain scalar's value by the YAML 1.2 core rules; numbers too long to be meant as numbers stay text.

    Raises:
        ValueError: an infinity, or not a number.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= MAX_DIGITS else text
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if _NOT_FINITE.fullmatch(text) or _FLOAT.fullmatch(text):
        raise ValueError(f"{text[:40]} is not a finite number")
    return text


@dataclass
class _Builder:
    """Turns YAML events into nodes; events rather than PyYAML's own tree, so that depth and size are limited on the way."""

    file: str
    fixed_place: bool
    problems: list[Problem] = field(default_factory=list)
    anchors: dict[str, Node] = field(default_factory=dict)
    nodes: int = 0

    def document(self, events: Iterator[Any]) -> Node:
        root: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self.stop(
                        event, "a second document starts here", "one file is one recipe; `matrix:` makes several of one"
                    )
                root = self.node(next(events), events, 0)
        if root is None:
            raise RecipeError(
                (Problem(self.place_at(0, 0), "the file is empty", "start with `schema: 1`, `name:` and `model:`"),)
            )
        return root

    def node(self, event: Value, events: Iterator[Any], depth: int) -> Node:
        place = self.place(event)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, place, depth)
        self.count(event, 1)
        self.check_depth(event, depth)
        if event.tag is not None:
            self.problems.append(
                Problem(place, f"tag `{event.tag[:60]}` is not allowed", "remove the tag; values speak for themselves")
            )
        if isinstance(event, yaml.MappingStartEvent):
            node = Node(self.mapping(events, depth), place)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(list(self.sequence(events, depth)), place)
        else:
            node = Node(self.scalar(event, place), place)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def mapping(self, events: Iterator[Any], depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            place = self.place(event)
            if not isinstance(event, yaml.ScalarEvent):
                self.stop(
                    event, "a key must be plain text", "write `key: value`; quote text that starts with [, { or *"
                )
            value = self.node(next(events), events, depth + 1)
            if event.value == "<<" and not event.style:
                self.problems.append(Problem(place, "merge keys `<<` are not supported", "use `extends:` or `vars:`"))
            elif event.value in found:
                first = found[event.value].key.removeprefix(f"{self.file}:")
                self.problems.append(
                    Problem(place, f"`{event.value}` is given twice; first at {first}", "keep one of them")
                )
            else:
                found[event.value] = Node(value.value, value.place, place)
        return found

    def sequence(self, events: Iterator[Any], depth: int) -> Iterator[Node]:
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                return
            yield self.node(event, events, depth + 1)

    def scalar(self, event: yaml.ScalarEvent, place: str) -> Any:
        if event.style:
            return event.value
        try:
            return resolve_scalar(event.value)
        except ValueError as error:
            self.problems.append(Problem(place, str(error), "give a finite number, or quote it if it is text"))
            return None

    def alias(self, event: yaml.AliasEvent, place: str, depth: int) -> Node:
        if event.anchor is None or event.anchor not in self.anchors:
            self.stop(
                event,
                f"alias `*{event.anchor}` names no anchor before it",
                f"write `&{event.anchor}` at the value meant",
            )
        target = self.anchors[event.anchor]
        self.count(event, target.size())
        self.check_depth(event, depth + target.depth())
        return Node(target.value, place)

    def count(self, event: yaml.Event, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.stop(
                event, f"more than {MAX_NODES:,} values once aliases are expanded", "write fewer aliases of aliases"
            )

    def check_depth(self, event: yaml.Event, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.stop(event, f"nested deeper than {MAX_DEPTH} levels", "a recipe needs six at most")

    def stop(self, event: yaml.Event, message: str, fix: str) -> NoReturn:
        raise RecipeError((*self.problems, Problem(self.place(event), message, fix)))

    def place(self, event: yaml.Event) -> str:
        mark = event.start_mark
        return self.place_at(mark.line, mark.column) if mark else self.file

    def place_at(self, line: int, column: int) -> str:
        return self.file if self.fixed_place else f"{self.file}:{line + 1}:{column + 1}"


def _syntax_problem(text: str, builder: _Builder, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    if line < len(lines) and "\t" in lines[line][: max(column + 1, len(lines[line]) - len(lines[line].lstrip()))]:
        place = builder.place_at(line, lines[line].index("\t"))
        return Problem(place, "a tab indents this line, and YAML allows only spaces", "replace the tab by spaces")
    message = ", ".join(part for part in (error.context, error.problem) if part)
    if "nesting depth" in message:  # PyYAML has a limit of its own, and may meet it while it looks ahead
        place = builder.place_at(line, column)
        return Problem(place, f"nested deeper than {MAX_DEPTH} levels", "a recipe needs six at most")
    fix = "check the indentation, the colons and the quotes"
    if line < len(lines) and "${" in lines[line]:
        fix = 'inside { } and [ ] quote variables: "${name}"'
    return Problem(builder.place_at(line, column), f"not valid YAML: {message}", fix)
