"""A task: what a model is for. The file `compress/tasks/text_to_image.py` is the task `text_to_image`: its record `TASK` is the
registration, as with stages and metrics.

A record is read by plans, so it imports no model library: it knows JSON and file names. What runs a model of the task lies in
`compress/opening/` under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.errors import Problem
from compress.machine.devices import CPU
from compress.params import Params

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.data.items import Kind
    from compress.recipe.values import EvalSpec

# What can be seen of a model: `images` it generates, the `latents` they are decoded from, the `denoising` between, `documents`'
# token probabilities, greedy `continuations` as text and `completions`, the same token by token, the time of a call and that of its
# tokens, what a call draws of `energy`, the `language_model` itself, opened; that its denoising goes along `trajectories` which can be
# followed without its pipeline; and that it is given `inputs`, images of which others are made, and `masks`, which say where.
# And what data may give beside its items: `captions`, `scenes`, captions in the grammar of the zoo's digits, and `edits`, captions of what
# is there before an edit and after it.
Observable = Literal[
    "images",
    "latents",
    "denoising",
    "trajectories",
    "inputs",
    "masks",
    "documents",
    "continuations",
    "completions",
    "language_model",
    "timings",
    "token_timings",
    "energy",
    "starts",
    "files",
    "captions",
    "scenes",
    "edits",
]
OF_DATA: tuple[Observable, ...] = ("captions", "scenes", "edits")  # what only data can give

ALWAYS: frozenset[Observable] = frozenset({"timings", "energy", "starts", "files"})  # of a model of any task
COST: frozenset[Observable] = ALWAYS | {"token_timings"}  # what it takes to run, and not what comes out
WRITTEN: frozenset[Observable] = frozenset({"continuations", "completions"})
OF_ITEMS: frozenset[Observable] = WRITTEN | {"images", "latents", "documents"}  # what is made of data
Axis = Literal["batch", "tokens"]


class NoSettings(Params):
    """A task without settings of its own."""


@dataclass(frozen=True)
class Size:
    """How large a call the evaluation makes: `count` along an axis that an engine may be built for some sizes of."""

    axis: Axis
    count: int


@dataclass(frozen=True)
class Fault:
    """An argument of a call that a model cannot take, why, and what to do."""

    argument: str
    message: str
    fix: str


@dataclass(frozen=True)
class Usage:
    """A model that somebody wants to call: its folder, whether stock libraries alone open it, whether its own Python code may run,
    the arguments of a call that it is meant for, a text to try it on, the device that it was measured on, whether the text is the question
    of a conversation, the number type that must be named where a library would take another, such as torch.float32, and the adapters beside it:
    name, path within the folder, scale."""

    folder: str
    stock: bool
    trusted: bool = False
    call: Mapping[str, object] = field(default_factory=dict)
    text: str = ""
    device: str = CPU
    chat: bool = False
    dtype: str = ""
    adapters: tuple[tuple[str, str, float], ...] = ()

    @property
    def opened(self) -> str:
        """The folder as Python writes it, with what opening it takes beside: for `compress.load`, the device too."""
        elsewhere = "" if self.stock or self.device == CPU else f", device={literal(self.device)}"
        return literal(self.folder) + elsewhere + (", trust_remote_code=True" if self.trusted else "")

    def arguments(self, **more: object) -> str:
        """The arguments of a call behind the first, as Python writes them."""
        given = {name: value for name, value in {**more, **self.call}.items() if _is_plain(value)}
        return "".join(f", {name}={literal(value)}" for name, value in given.items())


def literal(value: object) -> str:
    """A value as Python code, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _is_plain(value: object) -> bool:
    """Whether Python code that holds its `repr` makes it again."""
    return value is None or isinstance(value, (bool, int, float, str))


def load_it(usage: Usage) -> tuple[str, ...]:
    """Lines of Python that open a model of any task."""
    return "import compress", f"model = compress.load({usage.opened})", "help(type(model))"


@dataclass(frozen=True)
class Task:
    """What a model is for.

    name: its file's. title: in words.
    data: the kind of items it is run on.
    yields: what can be observed of a model; a metric or a stage fits where it needs no more than that.
    takes: of that, what its models are given of an item beside its text.
    settings: its own part of `evaluate`, and `baseline` that of `evaluate.baseline`; no other task may say a name otherwise.
    called: by the names in `baseline`, the arguments of a call that they set; instead: by such an argument, the one that is set in
        its place where a model's own call has that.
    evidence: from an evaluation's settings, the kinds of evidence that are collected of its items, each with the numbers that
        decide it beside the model, the call and the items.
    repeats: from an evaluation's settings, how often each item is looked at, with noise of its own.
    recognise: a folder to what it holds, or the Problem of one that comes near, or None where it is something else.
    reported: of the names in `called`, those whose default decides what a call costs, so that reports speak of it too.
    check: what does not fit together in an artifact, or cannot be opened; calls: what it cannot take of the arguments that it
        will be called with.
    libraries: the distributions that run a model, beside those of its engines: their versions decide what it shows.
    folders: whether two folders of images, beside which no model lies, are compared as what this task makes; one task says so.
    sizes: by the name of the setting that decides it, how large the calls of an evaluation are.
    usage: three lines of Python that load a model and call it.
    """

    name: str
    title: str
    data: Kind
    yields: frozenset[Observable]
    recognise: Callable[[Path], Artifact | Problem | None]
    takes: frozenset[Observable] = frozenset()
    settings: type[Params] = NoSettings
    baseline: type[Params] = NoSettings
    called: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    reported: tuple[str, ...] = ()
    evidence: Callable[[EvalSpec], Mapping[str, tuple[int, ...]]] = field(default=lambda spec: {})
    repeats: Callable[[EvalSpec], int] = field(default=lambda spec: 1)
    check: Callable[[Artifact], Iterable[Problem]] = field(default=lambda artifact: ())
    calls: Callable[[Artifact, Mapping[str, Any]], Iterable[Fault]] = field(default=lambda artifact, call: ())
    libraries: tuple[str, ...] = ("torch", "transformers")
    folders: bool = False
    sizes: Callable[[EvalSpec], Mapping[str, Size]] = field(default=lambda spec: {})
    usage: Callable[[Usage], tuple[str, ...]] = load_it

    def fits(self, needs: Iterable[Observable], given: Iterable[Observable] = ()) -> tuple[Observable, ...]:
        """What is lacking of `needs`, of a model of this task run on data that gives `given`; () where all is there."""
        there = self.yields | ALWAYS | set(given)
        return tuple(sorted(need for need in needs if need not in there))

    def arguments(self, own: Mapping[str, Any]) -> dict[str, str]:
        """By the names in `baseline`, the arguments that they set of a model whose own call is `own`."""
        other = {argument: name for argument, name in self.instead.items() if name in own}
        return {name: other.get(argument, argument) for name, argument in self.called.items()}

    def asked(self, baseline: Params, own: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call that baseline settings set, of a model whose own call is `own`."""
        given = {argument: getattr(baseline, name) for name, argument in self.arguments(own).items()}
        return {argument: value for argument, value in given.items() if value is not None}
