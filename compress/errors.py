"""Every error pare raises on purpose. Each says what is wrong, where, and what to do about it.

PareError
├── UserError            exit 2: the user's mistake; nothing was changed
│   ├── RecipeError      one or more located problems in a recipe, or in what the plan makes of it
│   ├── NotComparable    two runs of different protocols, baselines or machines
│   ├── ModelError       a folder that is no model, weights that do not read
│   ├── DataError        a data source that does not read
│   │   └── DamagedImages  every image of it that does not
│   ├── CacheError       the cache folder is read-only or full
│   └── MissingLibrary   an optional library is not installed; the fix is the install command
└── StageFailed          exit 3: a stage, or the check after it, did not succeed
    └── ContractError    a stage finished, but its artifact is not what it declared
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake with its place (`file:line:column`, a path, or empty) and its remedy."""

    place: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        head = f"{self.place}: {self.message}" if self.place else self.message
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class Refusal(str):
    """Why something is refused, and the remedy where one is known; "" refuses nothing."""

    fix: str

    def __new__(cls, why: str, fix: str = "") -> Refusal:
        made = super().__new__(cls, why)
        made.fix = fix
        return made


class PareError(Exception):
    """The root. `problems` is never empty; `exit_code` is what the command line returns."""

    exit_code = 3

    def __init__(self, message: str, *, place: str = "", fix: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(place, message, fix),)
        super().__init__(str(self.problems[0]))

    def __reduce__(self) -> tuple[object, ...]:
        """How it travels to another process: with its problems, and not made anew of its text."""
        return _again, (type(self), self.args, self.problems)


def _again(kind: type[PareError], args: tuple[str, ...], problems: tuple[Problem, ...]) -> PareError:
    """The error that `PareError.__reduce__` tells of."""
    error = kind.__new__(kind, *args)
    error.problems = problems
    return error


class UserError(PareError):
    exit_code = 2


class ManyProblems(UserError):
    """Everything that is wrong at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems[0].message, place=problems[0].place, fix=problems[0].fix)
        self.problems = problems
        self.args = ("\n".join(map(str, problems)),)


class RecipeError(ManyProblems):
    """The problems of one recipe, in the order of the file."""


class NotComparable(ManyProblems):
    """Two runs that say nothing about each other, and all that keeps them apart."""


class ModelError(UserError):
    pass


class DataError(UserError):
    pass


class DamagedImages(ManyProblems, DataError):
    """Every image that does not read."""


class CacheError(UserError):
    pass


class MissingLibrary(UserError):
    pass


class StageFailed(PareError):
    exit_code = 3


class ContractError(StageFailed):
    pass


def near(name: str, known: tuple[str, ...]) -> str:
    """A remedy for a misspelt name: its near matches, or all there is."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.55)
    likeness = {k: difflib.SequenceMatcher(None, name, k).ratio() for k in close}
    close = [k for k in close if likeness[k] > max(likeness.values()) - 0.15]
    close = close or [k for k in known if name and (name in k.split(".") or k.split(".")[-1] == name.split(".")[-1])]
    if close:
        return "did you mean " + " or ".join(f"`{c}`" for c in close) + "?"
    return "known: " + ", ".join(f"`{k}`" for k in known) if known else "there is none"
