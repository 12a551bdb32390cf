"""Images of numbers as inline SVG in the page's own colours, and images of images as PNG data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from evaluation.comparison import Comparison, Row
from evaluation.report import formatting
from evaluation.verdict.gates import allowed_of

Scale = Callable[[float], float]  # a value to per cent of the width
APART = 15.0  # per cent of the width: nearer labels would touch on a phone


def forest(comparison: Comparison) -> str:
    """Every interval on its own axis with what its gate allows shaded: ratios around 1 (logarithmic), differences
    around 0. Positions are per cent of the width, so that text keeps its size on a phone. Rows without a finite
    interval are left out.
    """
    parts = []
    for row in comparison.rows:
        finite = all(map(math.isfinite, (row.contrast.low, row.contrast.value, row.contrast.high)))
        if finite and (row.compared == "difference" or row.contrast.low > 0):
            gate = f"<small>{escape(row.verdict.gate)}</small>" if row.verdict.gate else ""
            parts.append(
                f'<div class="forest"><div><b>{escape(row.title)}</b> {gate}</div>{_axis(row)}'
                f'<div class="n">{escape(formatting.contrast(row))}</div></div>'
            )
    return "".join(parts)


def _axis(row: Row) -> str:
    zone, middle = allowed_of(row), 1.0 if row.compared == "ratio" else 0.0
    edges = [edge for edge in zone or () if math.isfinite(edge) and (edge > 0 or middle == 0.0)]
    x = scale([row.contrast.low, row.contrast.high, middle, *edges], row.compared == "ratio")
    parts = []
    if zone is not None:
        left, right = x(zone[0]), x(zone[1])
        parts.append(f'<rect class="zone" x="{left:.2f}%" width="{max(0.0, right - left):.2f}%" y="2" height="26"/>')
    parts += [_line(x(edge), "edge") for edge in edges] + [_line(x(middle), "middle")]
    parts.append(_interval(x(row.contrast.low), x(row.contrast.value), x(row.contrast.high), row.verdict.status))
    parts += labels([*edges, middle], x, "×" if row.compared == "ratio" else "")
    label = escape(f"{row.title}: {formatting.contrast(row)}; {row.verdict.gate or 'not gated'}")
    return f'<svg role="img" aria-label="{label}">{"".join(parts)}</svg>'


def scale(values: Sequence[float], logarithmic: bool) -> Callable[[float], float]:
    """From a value to per cent of the width; what lies outside is drawn at the rim."""
    low, high = (f(map(math.log, values) if logarithmic else values) for f in (min, max))
    room = (high - low) * 0.12 or 1.0

    def x(value: float) -> float:
        if logarithmic:
            value = math.log(value) if value > 0 else -math.inf
        return min(100.0, max(0.0, 100 * (value - low + room) / (high - low + 2 * room)))

    return x


def _line(at: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{at:.2f}%" x2="{at:.2f}%" y1="2" y2="28"/>'


def _interval(low: float, value: float, high: float, status: str) -> str:
    return (
        f'<g class="{status.split()[-1]}"><line class="bar" x1="{low:.2f}%" x2="{high:.2f}%" y1="15" y2="15"/>'
        f'<circle cx="{value:.2f}%" cy="15" r="5"/></g>'
    )


def labels(values: Sequence[float], x: Callable[[float], float], unit: str, y: float = 42) -> list[str]:
    """The values under the axis, the first of any that would touch; `y` is where their text stands, in pixels."""
    placed: list[float] = []
    parts = []
    for value in values:
        at = x(value)
        if all(abs(at - other) >= APART for other in placed):
            placed.append(at)
            anchor = "start" if at < 6 else "end" if at > 94 else "middle"
            text = tick(value) + unit
            parts.append(f'<text x="{at:.2f}%" y="{y:g}" text-anchor="{anchor}">{text}</text>')
    return parts


def tick(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def data_uri(image: NDArray[np.uint8]) -> str:
    """uint8 [height, width, 3] as a PNG in a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Absolute difference of two images of one shape; black where they agree."""
    found: NDArray[np.uint8] = np.abs(one.astype(np.int16) - other.astype(np.int16)).astype(np.uint8)
    return found
