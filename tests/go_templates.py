"""Go's text/template, as much of it as Modelfiles of ours use: `if`, `else if`, `else`, `range`, variables, and six functions. Written
from the documentation of text/template, and knows nothing of how our templates are made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ACTION = re.compile(r"\{\{(-?) ?(.*?) ?(-?)\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|:=|=|,|[^\s(),=:]+')

Tokens = list[str]


@dataclass
class Scope:
    """Variables, those of the blocks around it among them; `$` is what the template was given, dot what is looked at now."""

    dot: Any
    names: dict[str, Any]
    outer: Scope | None = None

    def find(self, name: str) -> Scope:
        if name in self.names:
            return self
        assert self.outer, f"undefined variable {name}"
        return self.outer.find(name)

    def inside(self, dot: Any) -> Scope:
        return Scope(dot, {}, self)


@dataclass
class Template:
    text: str
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pieces = self._trimmed(ACTION.split(self.text))

    @staticmethod
    def _trimmed(found: list[str]) -> list[str]:
        """Text, action, text, action, text: `{{-` takes white space away before it, `-}}` behind it."""
        texts, begins, actions, ends = found[0::4], found[1::4], found[2::4], found[3::4]
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            texts[i] = texts[i].rstrip() if begin else texts[i]
            texts[i + 1] = texts[i + 1].lstrip() if end else texts[i + 1]
        pieces = [piece for pair in zip(texts, actions, strict=False) for piece in pair]
        return [*pieces, texts[-1]]

    def render(self, **given: Any) -> str:
        out: list[str] = []
        at = self._block(0, Scope(given, {"$": given}), out, run=True)
        assert at >= len(self.pieces), "an end too many"
        return "".join(out)

    def _block(self, at: int, scope: Scope, out: list[str], *, run: bool) -> int:
        """Run pieces from `at` up to the action that ends the block; returns where that is."""
        while at < len(self.pieces):
            if run:
                out.append(self.pieces[at])
            at += 1
            if at >= len(self.pieces):
                break
            words = WORD.findall(self.pieces[at])
            if words[0] in ("else", "end"):
                return at
            at = self._action(at, words, scope, out, run=run) + 1
        return at

    def _action(self, at: int, words: Tokens, scope: Scope, out: list[str], *, run: bool) -> int:
        if words[0] == "if":
            return self._if(at, words[1:], scope, out, run=run)
        if words[0] == "range":
            return self._range(at, words[1:], scope, out, run=run)
        if not run:
            return at
        if len(words) > 1 and words[1] == ":=":
            scope.names[words[0]] = value(words[2:], scope)
        elif len(words) > 1 and words[1] == "=":
            scope.find(words[0]).names[words[0]] = value(words[2:], scope)
        else:
            out.append(str(value(words, scope)))
        return at

    def _if(self, at: int, words: Tokens, scope: Scope, out: list[str], *, run: bool) -> int:
        true = run and bool(value(words, scope))
        at = self._block(at + 1, scope.inside(scope.dot), out, run=true)
        other = WORD.findall(self.pieces[at])
        if other == ["end"]:
            return at
        if other[1:2] == ["if"]:  # whose end is ours
            return self._if(at, other[2:], scope, out, run=run and not true)
        at = self._block(at + 1, scope.inside(scope.dot), out, run=run and not true)
        assert self.pieces[at] == "end"
        return at

    def _range(self, at: int, words: Tokens, scope: Scope, out: list[str], *, run: bool) -> int:
        index, comma, element, assign, *what = words
        assert (comma, assign) == (",", ":=")
        for number, one in enumerate(value(what, scope) if run else ()):
            inner = scope.inside(one)
            inner.names |= {index: number, element: one}
            self._block(at + 1, inner, out, run=True)
        end = self._block(at + 1, scope.inside(None), [], run=False)
        assert self.pieces[end] == "end"
        return end


def value(words: Tokens, scope: Scope) -> Any:
    """A pipeline of one command: a function with its arguments, or an operand alone."""
    rest = list(words)
    found = _command(rest, scope)
    assert not rest, f"left over: {rest}"
    return found


def _command(rest: Tokens, scope: Scope) -> Any:
    first = rest[0]
    if first not in FUNCTIONS:
        return _operand(rest, scope)
    rest.pop(0)
    arguments = []
    while rest and rest[0] != ")":
        arguments.append(_operand(rest, scope))
    return FUNCTIONS[first](*arguments)


def _operand(rest: Tokens, scope: Scope) -> Any:
    word = rest.pop(0)
    if word == "(":
        found = _command(rest, scope)
        assert rest.pop(0) == ")"
        return found
    if word.startswith('"'):
        return word[1:-1]
    if word.isdigit():
        return int(word)
    name, *fields = word.split(".")
    found = scope.find(name).names[name] if name else scope.dot
    for one in filter(None, fields):
        found = found[one]
    return found


def _and(*values: Any) -> Any:
    return next((one for one in values if not one), values[-1])


def _slice(values: Sequence[Any], start: int) -> Sequence[Any]:
    return values[start:]


FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": _and,
    "not": lambda one: not one,
    "len": len,
    "slice": _slice,
}


def as_ollama(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama makes of a conversation: it joins the system messages, and gives all messages too."""
    system = "\n\n".join(one["content"] for one in messages if one["role"] == "system")
    given = [{"Role": one["role"], "Content": one["content"]} for one in messages]
    return Template(template).render(System=system, Messages=given)
