"""Speed against quality: the baseline, every stage and the candidate with their intervals, in what the gates allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evaluation.comparison import Comparison, Row
from evaluation.report import formatting, plots
from evaluation.report.label_layout import Spot, place
from evaluation.values import Estimate
from evaluation.verdict.gates import allowed_of

HEIGHT = 240.0  # pixels; x is in per cent of the width, as in every plot of the report
APART = 15.0  # pixels between two numbers of the vertical axis
FAR = 20.0  # pixels between a point and its name's base line
BETTER = {"higher": "up is better", "lower": "axis reversed, so that up is better", "same": "no change is best"}
# The order in which numbers claim room on the speed axis.
TICKS = (2, 0.5, 4, 0.25, 8, 16, 32, 64, 1.5, 3, 6, 0.1, 0.75, 1.25, 1.1, 0.9)


@dataclass(frozen=True)
class Point:
    """One model: its speed-up, and the contrast of a quality metric with the baseline."""

    name: str
    speed: Estimate
    quality: Estimate
    status: str = ""  # the verdict's, for the candidate


def plot(comparison: Comparison) -> str:
    """A plot for each gated quality metric, the first one large. "" where no stage has both a speed and a quality."""
    speed = formatting.speed_row(comparison)
    if speed is None:
        return ""
    drawn = []
    for row in comparison.rows:
        points = points_of(comparison, speed, row)
        if len(points) > 1:
            drawn.append(_figure(speed, row, points))
    return f'<div class="tradeoffs">{"".join(drawn)}</div>' if drawn else ""


def points_of(comparison: Comparison, speed: Row, row: Row) -> list[Point]:
    """The baseline, each stage in between that has both numbers, the candidate as the verdict saw it, and each control as it stood
    beside it."""
    start = 1.0 if row.compared == "ratio" else 0.0
    one, none = Estimate(1.0, 1.0, 1.0, speed.contrast.n), Estimate(start, start, start, row.contrast.n)
    points = [Point("baseline", one, none)]
    for step in comparison.steps[1:]:
        quality = next((q.cumulative for q in step.quality if q.metric == row.metric), None)
        if step.speed and quality:
            points.append(Point(step.stage, step.speed.cumulative, quality))
    if len(points) > 1 and points[-1].name == comparison.steps[-1].stage:
        points[-1] = Point(points[-1].name, speed.contrast, row.contrast, row.verdict.status)
    for control in comparison.controls if len(points) > 1 else ():
        found = {one.metric: one.contrast for one in control.rows}
        if speed.metric in found and row.metric in found:
            points.append(Point(f"control {control.stage}", found[speed.metric], found[row.metric]))
    return [p for p in points if math.isfinite(p.speed.value + p.quality.value) and min(ends(p.speed)) > 0]


def front(points: Sequence[Point], row: Row) -> list[Point]:
    """The points that no other beats in both speed and quality, the slowest first."""
    start = points[0].quality.value

    def good(point: Point) -> float:
        value = point.quality.value
        return {"higher": value, "lower": -value, "same": -abs(value - start)}[row.better]

    def beaten(point: Point) -> bool:
        return any(
            other.speed.value >= point.speed.value
            and good(other) >= good(point)
            and (other.speed.value, good(other)) != (point.speed.value, good(point))
            for other in points
        )

    return sorted((p for p in points if not beaten(p)), key=lambda p: p.speed.value)


def _figure(speed: Row, row: Row, points: list[Point]) -> str:
    zone = allowed_of(speed) or (0.0, math.inf), allowed_of(row) or (-math.inf, math.inf)
    fast, good = ([edge for edge in side if math.isfinite(edge) and edge != 0] for side in zone)
    x = plots.scale([1.0, *(e for e in fast if e > 0), *(end for p in points for end in ends(p.speed))], True)
    y = _vertical([*good, *(end for p in points for end in ends(p.quality))], row.better == "lower")
    spots = [_spot(p, x, y) for p in points]
    start = points[0].quality.value
    best = [_spot(p, x, y) for p in front(points, row)]
    parts = [
        _zone(zone, x, y),
        _line(x(1.0), 0, x(1.0), HEIGHT, "middle"),
        _line(0, y(start), 100, y(start), "middle"),
        *(_line(one.x, one.y, other.x, other.y, "front") for one, other in pairwise(best)),
        *(_mark(p, s) for p, s in zip(points, spots, strict=True)),
        *_names(spots),
        *plots.labels([1.0, *fast, *(t for t in TICKS if 0 < x(t) < 100)], x, "×", HEIGHT + 16),
        *_vertical_labels([start, *good, *(p.quality.value for p in points)], y),
    ]
    reported = f"speed-up against {row.title}: " + "; ".join(_reported(p, speed, row) for p in points)
    return (
        f'<div class="tradeoff"><div><b>{formatting.escaped(row.title)}</b>, difference from the baseline'
        f"<small>{BETTER[row.better]}; shaded: {formatting.escaped(_gates(speed, row))}</small></div>"
        f'<svg role="img" aria-label="{formatting.escaped(reported)}">{"".join(parts)}</svg>'
        f"<small>speed-up in {formatting.escaped(speed.title)}, logarithmic →</small></div>"
    )


def _gates(speed: Row, row: Row) -> str:
    gates = (f"{r.title} {r.verdict.gate}" for r in (row, speed) if r.verdict.gate)
    return ", ".join(gates) or "nothing is gated"


def _reported(point: Point, speed: Row, row: Row) -> str:
    return f"{point.name} {formatting.contrast_of(speed, point.speed)}, {formatting.contrast_of(row, point.quality)}"


def ends(found: Estimate) -> tuple[float, float]:
    """Its ends, or the value itself where it has none."""
    low, high = (end if math.isfinite(end) else found.value for end in (found.low, found.high))
    return low, high


def _vertical(values: Sequence[float], reversed_: bool) -> Callable[[float], float]:
    """From a value to pixels from the top, the better end up."""
    up = plots.scale(values, False)

    def y(value: float) -> float:
        return HEIGHT * (up(value) if reversed_ else 100 - up(value)) / 100

    return y


def _spot(point: Point, x: Callable[[float], float], y: Callable[[float], float]) -> Spot:
    (left, right), (one, other) = map(x, ends(point.speed)), map(y, ends(point.quality))
    at = x(point.speed.value), y(point.quality.value)
    return Spot(point.name, *at, left, right, min(one, other), max(one, other))


def _zone(
    zone: tuple[tuple[float, float], tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """What the gates of speed and quality allow together; an open side reaches to the rim."""
    left, right = map(x, zone[0])
    top, bottom = sorted(map(y, zone[1]))
    return (
        f'<rect class="zone" x="{left:.2f}%" width="{max(0.0, right - left):.2f}%" '
        f'y="{top:.1f}" height="{bottom - top:.1f}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def _mark(point: Point, spot: Spot) -> str:
    bars = _line(spot.left, spot.y, spot.right, spot.y, "bar") + _line(spot.x, spot.top, spot.x, spot.bottom, "bar")
    size = 6 if point.status else 4.5
    kind = point.status.split()[-1] if point.status else "between"
    return f'<g class="{kind}">{bars}<circle cx="{spot.x:.2f}%" cy="{spot.y:.1f}" r="{size}"/></g>'


def _names(spots: Sequence[Spot]) -> list[str]:
    """Each name beside its point, tied to it by a line where it had to go further away."""
    parts = []
    for spot, name in zip(spots, place(spots, HEIGHT), strict=True):
        if abs(name.y - spot.y) > FAR:
            parts.append(_line(spot.x, spot.y, spot.x, name.y - 4, "tie"))
        parts.append(
            f'<text class="name" x="{spot.x:.2f}%" y="{name.y:.1f}" dx="{name.dx:g}" text-anchor="{name.anchor}">'
            f"{formatting.escaped(name.text)}</text>"
        )
    return parts


def _vertical_labels(values: Sequence[float], y: Callable[[float], float]) -> list[str]:
    placed: list[float] = []
    parts = []
    for value in values:
        at = y(value)
        if all(abs(at - other) >= APART for other in placed):
            placed.append(at)
            sign = "+" if value > 0 else ""
            parts.append(f'<text x="0" dx="-8" y="{at + 4:.1f}" text-anchor="end">{sign}{plots.tick(value)}</text>')
    return parts
