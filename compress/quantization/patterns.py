"""What a recipe's `ignore:` may say of layers: their names, globs (*.o_proj), regular expressions (re:.*proj), or a module they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache

from compress.errors import near
from compress.params import Fault

EXPRESSION = "re:"  # begins a pattern that is a regular expression, as in compressed-tensors


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a module, or one that it lies in; what is no regular expression names none."""
    words = name.split(".")
    ways = (".".join(words[:count]) for count in range(len(words), 0, -1))
    if pattern.startswith(EXPRESSION):
        expression = _compiled(pattern)
        return isinstance(expression, re.Pattern) and any(expression.fullmatch(way) for way in ways)
    return any(fnmatchcase(way, pattern) for way in ways)


def expression_faults(patterns: Iterable[str]) -> tuple[Fault, ...]:
    """Which patterns are no regular expressions, though they begin as one: known without any layer."""
    return tuple(
        Fault(f"ignore: `{pattern}` is no regular expression: {why}", "write one, or a glob: *.o_proj")
        for pattern in patterns
        if pattern.startswith(EXPRESSION) and isinstance(why := _compiled(pattern), str)
    )


def pattern_faults(
    patterns: Iterable[str], names: Iterable[str] | None, among: str, ways: tuple[str, ...]
) -> tuple[Fault, ...]:
    """Everything that is wrong with patterns: those that are none, and those that name no layer.

    Args:
        names: what the layers are called; None where nothing is known of them yet, and only expressions are looked at.
        among: what they are, in words: the 9 linear layers.
        ways: patterns that name some, of which the nearest is proposed.
    """
    called, found = None if names is None else tuple(names), list[Fault]()
    for pattern in patterns:
        if faults := expression_faults([pattern]):
            found += faults
        elif called is not None and not any(matches(pattern, name) for name in called):
            found.append(Fault(f"ignore: `{pattern}` names none of {among}", near(pattern, ways)))
    return tuple(found)


@cache
def _compiled(pattern: str) -> re.Pattern[str] | str:
    """A pattern's regular expression, or why it is none."""
    try:
        return re.compile(pattern.removeprefix(EXPRESSION))
    except re.error as error:
        return str(error)
