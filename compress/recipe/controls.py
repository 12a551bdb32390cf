"""Names of controls, read from a recipe alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from compress.errors import Problem, near


def naming_problems(named: Iterable[tuple[str, str]], ids: Sequence[str]) -> Iterator[Problem]:
    """Controls that are no step of another branch.

    Args:
        named: each with its place.
        ids: of all steps, in order; the last one leaves the candidate.
    """
    seen: set[str] = set()
    for name, place in named:
        if name in seen:
            yield Problem(place, f"control `{name}` is named twice", "keep one of them")
        elif name == "source":
            message = "control `source` is the baseline, which stands beside the candidate anyway"
            yield Problem(place, message, "name a step that another branch ends with")
        elif name not in ids:
            others = tuple(ids[:-1])
            fix = (
                near(name, others)
                if others
                else "the last step is the candidate: put a step in front that another branch ends with"
            )
            yield Problem(place, f"controls: no step is called `{name[:60]}`", fix)
        elif name == ids[-1]:
            message = f"control `{name}` is the candidate itself, for it is the last step"
            fix = "name a step that another branch ends with, and put that branch in front"
            yield Problem(place, message, fix)
        seen.add(name)
