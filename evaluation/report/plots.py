"""Pictures of numbers as inline SVG in the page's own colours, and pictures of pictures as PNG data URIs."""

from __future__ import annotations

import base64
import io
import math
from html import escape

import numpy as np
from numpy.typing import NDArray

from evaluation.report import words
from evaluation.scores import Comparison, Row

WIDTH, ROW, LEFT, RIGHT = 760, 34, 190, 200


def speedups(comparison: Comparison) -> str:
    """Every ratio with its interval on one logarithmic axis: right of 1 the candidate is better."""
    rows = [r for r in comparison.rows if r.compared == "ratio" and r.contrast.low > 0]
    if not rows:
        return ""
    top = max(2.0, *(r.contrast.high for r in rows)) * 1.15
    bottom = min(0.9, *(r.contrast.low for r in rows)) / 1.1

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / bottom) / math.log(top / bottom)

    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if bottom <= t <= top]
    height = ROW * len(rows) + 30
    parts = [f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="0" y2="{height - 24}" stroke="currentColor" opacity="{0.6 if t == 1 else 0.15}"/>'
             f'<text x="{x(t):.1f}" y="{height - 6}" text-anchor="middle">{t:g}×</text>' for t in ticks]  # fmt: skip
    for index, row in enumerate(rows):
        y = ROW * index + ROW / 2
        parts.append(_interval(row, y, x))
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="ratios, baseline to candidate">{"".join(parts)}</svg>'


def _interval(row: Row, y: float, x: object) -> str:
    at = x if callable(x) else float
    low, value, high = (at(v) for v in (row.contrast.low, row.contrast.value, row.contrast.high))
    return (
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row.title)}</text>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="currentColor" stroke-width="3"/>'
        f'<circle cx="{value:.1f}" cy="{y}" r="5" fill="currentColor"/>'
        f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4}">{escape(words.contrast(row))}</text>'
    )


def data_uri(picture: NDArray[np.uint8]) -> str:
    """uint8 [height, width, 3] as a PNG in a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Absolute difference of two pictures of one shape; black where they agree."""
    found: NDArray[np.uint8] = np.abs(one.astype(np.int16) - other.astype(np.int16)).astype(np.uint8)
    return found
