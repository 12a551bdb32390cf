"""`bits: auto`: layers as wide as their measured costs ask for, within a budget of bytes. What all quantizers that have it share: what a
plan refuses and warns of, and how the budget is met in a run.

A plan knows sizes from headers, and not yet what layers cost: so it knows the smallest and the largest size in reach, and a run the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from compress.artifact import Artifact
from compress.errors import StageFailed, UserError
from compress.params import Fault, spelt
from compress.quantization.budgets import SIZED, UNITS, WITHIN, Choice, Option, bytes_of, choose, missed, unreadable
from compress.quantization.sensitivity import STAGE, measured, stale

RECKONED = 0.005  # of the weights, that a library may take otherwise than was reckoned
ALL = 0.9999  # the largest share that a budget can be
WIDEST = 8  # bits of a layer that is packed
LISTED = "bytes of a component's weights with bits: auto: a share of what they take now, or a size such as 120 MB"


@dataclass(frozen=True)
class Asked:
    """What a recipe asks of a quantizer that can share out a budget.

    auto: whether it says bits: auto. widths: in bits, what the quantizer can give a layer. every: whether the costs of all of them
    must be known; else those of two will do. group_size: weights that share a scale, 0 a whole row; None where nobody can say it.
    """

    auto: bool
    budget: float | str | None
    widths: tuple[int, ...]
    symmetric: bool
    group_size: int | None = None
    every: bool = True

    def known(self, tried: Iterable[int]) -> tuple[int, ...]:
        """Its widths among those whose costs were measured, from few bits to many."""
        return tuple(sorted({*self.widths} & {*tried}))


@dataclass(frozen=True)
class Sizes:
    """What a component's weights take, bytes.

    layers: by layer, those of each width. fixed: of all else, which no choice changes. whole: of all as they are now.
    slack: share by which these numbers may be off.
    """

    layers: Mapping[str, Mapping[int, int]]
    fixed: int
    whole: int
    slack: float = 0.0

    @property
    def least(self) -> int:
        return self.fixed + sum(min(sizes.values()) for sizes in self.layers.values())

    @property
    def most(self) -> int:
        return self.fixed + sum(max(sizes.values()) for sizes in self.layers.values())


Sizing = Callable[
    [str, tuple[int, ...]], Sizes | None
]  # of a component in these widths; None where headers do not tell


def automatic_faults(artifact: Artifact, names: Iterable[str], asked: Asked, sizing: Sizing) -> Iterator[Fault]:
    """All that keeps a budget from being shared out among the layers of these components, as far as a plan can know it."""
    if asked.auto != (asked.budget is not None):
        yield Fault("bits: auto and budget go together", "give both, or neither")
    if not asked.auto or asked.budget is None:
        return
    if isinstance(asked.budget, str) and (why := unreadable(asked.budget)):
        yield Fault(f"budget: {why}", SIZED)
        return
    for name in names:
        if why := stale(artifact, name):
            yield Fault(why, f"put {STAGE} in front of it, behind all that changes weights")
        elif fault := _unmeasured(artifact, name, asked):
            yield fault
        elif sizes := sizing(name, widths_in_reach(artifact, name, asked)):
            yield from _out_of_reach(name, sizes, asked.budget)


def rounding_cautions(artifact: Artifact, names: Iterable[str], asked: Asked) -> Iterator[str]:
    """Where costs were measured with another rounding than they are used for."""
    for name in names if asked.auto else ():
        made = measured(artifact, name)
        was = made.params if made else {}
        wanted = {"group_size": asked.group_size, "symmetric": asked.symmetric}
        other = [n for n, is_ in wanted.items() if made and is_ is not None and was[n] != is_]
        if other:
            then, now = (", ".join(f"{n}: {spelt(values[n])}" for n in other) for values in (was, wanted))
            yield f"{STAGE} measured `{name}` with {then}, and it is rounded with {now}: give both the same"


def widths_in_reach(artifact: Artifact, name: str, asked: Asked) -> tuple[int, ...]:
    """The widths that a component's layers may get: those that were measured, as its lineage tells, and that the quantizer has."""
    return asked.known(_tried(artifact, name))


def share_out(
    artifact: Artifact, name: str, sizes: Sizes, costs: Mapping[str, Mapping[int, float]], budget: float | str
) -> Choice:
    """A width for each layer, so that they cost least and all weights take no more than the budget.

    Args:
        costs: by layer and width; a layer whose costs are not known gets the most bits that it can have.

    Returns:
        The choice, with the bytes of all weights.

    Raises:
        UserError: no choice comes within 2% of the budget; it names the nearest.
    """
    wanted = bytes_of(budget, sizes.whole)
    options = {layer: _options(widths, costs.get(layer)) for layer, widths in sizes.layers.items()}
    found = choose(options, wanted - sizes.fixed)
    if why := missed(found, wanted, sizes.fixed):
        nearest = _budget(found.size + sizes.fixed, sizes.whole, budget, up=True)
        raise UserError(f"`{name}`: {why}", place=str(artifact.path), fix=f"budget: {nearest}")
    return Choice(found.bits, found.size + sizes.fixed, found.cost)


def check_reckoned(made: Artifact, name: str, size: int, choice: Choice) -> None:
    """Raises a StageFailed where the weights take something else than was reckoned, so that the budget may not be met."""
    if abs(size - choice.size) > RECKONED * choice.size:
        message = f"the weights of `{name}` take {size / 1e6:.4g} MB, where {choice.size / 1e6:.4g} MB were reckoned"
        raise StageFailed(message, place=str(made.folder(name)), fix="leave out bits and budget, and report this")


def widths_text(choice: Choice) -> str:
    """How many layers got which width: 3 layers in 4 bits, 2 layers in 8 bits."""
    counts = sorted(Counter(choice.bits.values()).items())
    return ", ".join(f"{n} layers {f'in {bits} bits' if bits <= WIDEST else 'as they are'}" for bits, n in counts)


def _unmeasured(artifact: Artifact, name: str, asked: Asked) -> Fault | None:
    """What lacks of the costs that it takes to share out a budget."""
    tried = _tried(artifact, name)
    known = asked.known(tried)
    if len(known) >= (len(asked.widths) if asked.every else 2):
        return None
    listed = ", ".join(map(str, sorted(asked.widths, reverse=True)))
    needs = listed if asked.every else f"two or more of {listed}"
    message = f"{STAGE} measured {', '.join(map(str, tried))} bits of `{name}`, and a budget needs {needs}"
    give = asked.widths if asked.every else (8, 4)
    return Fault(message, f"{STAGE}: {{bits: [{', '.join(map(str, sorted({*give, *known}, reverse=True)))}]}}")


def _tried(artifact: Artifact, name: str) -> tuple[int, ...]:
    """The widths that a component was measured in."""
    made = measured(artifact, name)
    return tuple(made.params["bits"]) if made else ()


def _out_of_reach(name: str, sizes: Sizes, budget: float | str) -> Iterator[Fault]:
    """Why no choice of widths comes within 2% of a budget, whatever layers cost."""
    wanted, least, most = bytes_of(budget, sizes.whole), sizes.least, sizes.most
    if least * (1 - sizes.slack) <= wanted <= most * (1 + sizes.slack) / (1 - WITHIN):
        return
    about = "about " if sizes.slack else ""
    asked = (
        f"a budget of {wanted / 1e6:.4g} MB"
        if isinstance(budget, str)
        else f"a budget of {budget:g}, {wanted / 1e6:.4g} MB,"
    )
    message = f"{asked} is out of reach: the weights of `{name}` can take from {about}{least / 1e6:.4g} to {most / 1e6:.4g} MB"
    ends = (_budget(least, sizes.whole, budget, up=True), _budget(most, sizes.whole, budget, up=False))
    yield Fault(message, f"give a budget from {' to '.join(ends)}")


def _options(sizes: Mapping[int, int], costs: Mapping[int, float] | None) -> tuple[Option, ...]:
    if costs is None:
        most = max(sizes)
        return (Option(most, sizes[most], 0.0),)
    return tuple(Option(bits, size, costs[bits]) for bits, size in sizes.items())


def _budget(size: int, whole: int, budget: float | str, *, up: bool) -> str:
    """A size as a budget is written that was written so, in four digits: a remedy that was rounded away would be refused again."""
    if isinstance(budget, str):
        unit = next((unit for unit in reversed(UNITS) if size >= UNITS[unit]), "B")
        return f"{_rounded(size / UNITS[unit], up=up):.12g} {unit}"
    return f"{min(_rounded(size / whole, up=up), ALL):.12g}"


def _rounded(value: float, *, up: bool) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return round((math.ceil if up else math.floor)(value / step) * step, 12)
