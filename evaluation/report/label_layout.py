"""Where names stand in a plot: near their points, on no other name and inside the image, on a phone as on a desk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTHS = (270.0, 900.0)  # pixels of a plot on the narrowest and the widest page; what holds at both holds between
CHARACTER, LINE, GAP = 6.8, 14.0, 8.0  # pixels of 12px text, and between a point and its name
LONGEST = 18  # characters of a name that is shown: on one side of any point there is room for them on a phone
Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels


@dataclass(frozen=True)
class Spot:
    """A point and the ends of its bars: x in per cent of the width, y in pixels from the top."""

    text: str
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Name:
    """`dx` pixels from the point's x, with its text's base line at `y`."""

    text: str
    dx: float
    y: float
    anchor: Literal["start", "end"]


def place(spots: Sequence[Spot], height: float) -> list[Name]:
    """A name for each spot, one after the other, each where it costs least."""
    placed: list[tuple[Spot, Name]] = []
    for spot in spots:
        text = spot.text if len(spot.text) <= LONGEST else spot.text[: LONGEST - 1] + "…"
        placed.append((spot, min(_candidates(spot, text), key=lambda name: _cost(spot, name, spots, placed, height))))
    return [name for _, name in placed]


def _candidates(spot: Spot, text: str) -> list[Name]:
    """Beside the point, just above and below its horizontal bar, and from there a line at a time."""
    found = []
    for away in range(12):
        for y in (spot.y - 6 - away * LINE, spot.y + 15 + away * LINE):
            found += [Name(text, GAP, y, "start"), Name(text, -GAP, y, "end")]
    return found


def box(spot: Spot, name: Name, width: float) -> Box:
    """What a name covers on an image so many pixels wide."""
    at, long = spot.x / 100 * width + name.dx, CHARACTER * len(name.text)
    left = at if name.anchor == "start" else at - long
    return left, name.y - 11, left + long, name.y + 3


def _cost(spot: Spot, name: Name, spots: Sequence[Spot], placed: Sequence[tuple[Spot, Name]], height: float) -> float:
    cost = abs(name.y - spot.y) / 3
    for width in WIDTHS:
        here = box(spot, name, width)
        if here[0] < 0 or here[2] > width or here[1] < 0 or here[3] > height:
            cost += 2000
        cost += 1000 * sum(overlap(here, box(other, taken, width)) for other, taken in placed)
        for other in spots:
            x, left, right = (at / 100 * width for at in (other.x, other.left, other.right))
            cost += 100 * overlap(here, (x - 6, other.y - 6, x + 6, other.y + 6))
            bars = (left, other.y - 1, right, other.y + 1), (x - 1, other.top, x + 1, other.bottom)
            cost += 8 * sum(overlap(here, bar) for bar in bars)
    return cost


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
