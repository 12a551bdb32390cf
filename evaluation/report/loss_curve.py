"""The loss of a stage that trained, as a small line."""

from __future__ import annotations

import math

from evaluation.report import formatting

WIDE, HIGH = 200.0, 40.0  # of the image's own units; the page stretches it
MOST = 200  # points that are drawn
Curve = list[tuple[float, float]]


def read(name: str, fact: object) -> Curve | None:
    """The (step, loss) pairs of a stage's fact called `loss` or `COMPONENT loss`; None for any other fact.

    Pairs whose numbers are missing or not finite are left out.
    """
    if name.split(" ")[-1] != "loss" or not isinstance(fact, (list, tuple)):
        return None
    pairs = [tuple(pair) for pair in fact if isinstance(pair, (list, tuple)) and len(pair) == 2]
    if len(pairs) != len(fact):
        return None
    return [(at, loss) for at, loss in pairs if _finite(at) and _finite(loss)]


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def reported(name: str, curve: Curve) -> str:
    """First and last value in words."""
    if not curve:
        return f"{name}: no finite value"
    (first, begin), (last, end) = curve[0], curve[-1]
    return f"{name} {formatting.number(begin)} at step {first:g} → {formatting.number(end)} at step {last:g}"


def draw(name: str, curve: Curve) -> str:
    """An SVG line, and its ends in words below; the words alone where there are fewer than two points."""
    text = reported(name, curve)
    losses = [loss for _, loss in curve]
    logarithmic = bool(losses) and min(losses) > 0 and max(losses) > 10 * min(losses)
    small = f"<small>{formatting.escaped(text + (', logarithmic' if logarithmic else ''))}</small>"
    if len(curve) < 2:
        return small
    heights = [math.log(loss) if logarithmic else loss for loss in losses]
    x, y = _onto([at for at, _ in curve], WIDE), _onto(heights, HIGH)
    kept = sorted({round(i * (len(curve) - 1) / (MOST - 1)) for i in range(MOST)})
    points = " ".join(f"{x[i]:.1f},{HIGH - y[i]:.1f}" for i in kept)
    return (
        f'<svg class="curve" role="img" aria-label="{formatting.escaped(text)}" viewBox="0 0 {WIDE:g} {HIGH:g}" '
        f'preserveAspectRatio="none"><polyline points="{points}"/></svg>{small}'
    )


def _onto(values: list[float], length: float) -> list[float]:
    low, high = min(values), max(values)
    return [length * (value - low) / ((high - low) or 1.0) for value in values]
