"""A proposal: the steps that can be planned for a model, and what was left out, each with the plan's own reason."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from compress.errors import RecipeError
from compress.planning.plan import sketch
from compress.proposing.choices import Choice, Facts, Goal, Step, choices
from compress.proposing.machine import Machine
from compress.proposing.writing import Asked, recipe_text
from compress.recipe.reading import read_text
from compress.sources.models import Source
from compress.store.cache import Cache


@dataclass(frozen=True)
class Proposal:
    """The text of a recipe, and what it holds. left: what was left out, and why."""

    text: str
    steps: tuple[Step, ...]
    left: tuple[tuple[str, str], ...]


@dataclass
class _Growing:
    """A recipe as its steps are tried, one choice after the other."""

    asked: Asked
    facts: Facts
    source: Source
    file: Path
    cache: Cache
    kept: list[Step] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def add(self, choice: Choice) -> None:
        """Keep the first way that works, or say why none does."""
        if choice.skipped:
            self.left.append((choice.title, choice.skipped))
            return
        for way in choice.ways:
            why = self.hindrance((*self.kept, *way))
            if not why:
                self.kept += way
                return
            self.left.append((" and ".join(dict.fromkeys(step.stage for step in way)), why))

    def hindrance(self, steps: tuple[Step, ...]) -> str:
        """Why a recipe of these steps cannot be planned here, or ""."""
        try:
            (recipe,) = read_text(recipe_text(self.asked, self.facts, steps, ()), str(self.file))
        except RecipeError as error:
            return error.problems[0].message
        memory, problems = sketch(recipe, self.source, self.cache)
        if problems:
            return problems[0].message
        if memory > self.facts.machine.memory:
            return f"needs about {memory / 1e9:.1f} GB of memory, and this machine has {self.facts.machine.memory / 1e9:.1f} GB"
        return ""


def propose(asked: Asked, source: Source, file: Path, machine: Machine, goal: Goal, cache: Cache) -> Proposal:
    """A recipe for a model and its data, that `file` will hold; relative paths in it start at its folder.

    Raises:
        RecipeError: the model and its data do not go together.
    """
    facts = Facts(source.artifact, machine, goal, frozenset(asked.data))
    growing = _Growing(asked, facts, source, file, cache)
    (bare,) = read_text(recipe_text(asked, facts, (), ()), str(file))
    if problems := sketch(bare, source, cache)[1]:
        raise RecipeError(tuple(replace(problem, place="") for problem in problems))
    for choice in choices(facts):
        growing.add(choice)
    kept, left = tuple(growing.kept), tuple(growing.left)
    return Proposal(recipe_text(asked, facts, kept, left), kept, left)
