"""What was measured beside what arithmetic explains: operations for pictures, bytes read for each token of text.

A small batch of pictures is bound by its operations and the decoding of text by its weights on their way to the processor, so
those ratios are what a smaller model alone can give. More than that came from elsewhere, and less was lost on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.scores import Row


@dataclass(frozen=True)
class Realised:
    """Two ratios, above 1 where the candidate is better, and `share`, the measured over the theoretical one."""

    theoretical: float
    measured: float
    share: float
    sentence: str


def realised(rows: Sequence[Row]) -> Realised | None:
    """Pair the measured speed-up with the theoretical one.

    Pictures: `latency`, or else `throughput`, with `flops`. Text: `throughput` of decoding, or else `time_per_output_token`,
    with `size`, for each token reads every weight once. None where either row is missing or has no number.
    """
    known = {row.metric: row for row in rows}
    text = _is_text(known)
    names = ("throughput", "time_per_output_token") if text else ("latency", "throughput")
    wall = next((known[name] for name in names if name in known), None)
    promised = known.get("size" if text else "flops")
    if wall is None or promised is None:
        return None
    theoretical, measured = promised.contrast.value, wall.contrast.value
    if not (math.isfinite(theoretical) and math.isfinite(measured) and theoretical > 0):
        return None
    return Realised(theoretical, measured, measured / theoretical, _sentence(theoretical, wall, text))


def roof(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    """How near the candidate's decoding comes to what memory allows: each step reads every weight once. "" for pictures.

    A model that fits into the processor's caches may read faster than memory does.
    """
    known = {row.metric: row for row in rows}
    if "throughput" not in known or "size" not in known or not _is_text(known) or not machine.get("read_gb_s"):
        return ""
    wall, size = known["throughput"], known["size"]
    steps = wall.candidate.value / float(wall.protocol.get("batch", 1))
    read = size.candidate.value / 1000 * steps  # MB a step to GB a second
    if not math.isfinite(read):
        return ""
    return (
        f"Decoding reads {read:.1f} GB/s of weights, {100 * read / machine['read_gb_s']:.0f}% of the "
        f"{machine['read_gb_s']:g} GB/s that this machine reads from memory"
    )


def _is_text(known: dict[str, Row]) -> bool:
    counted = known["flops"].protocol if "flops" in known else {}
    decoded = known["throughput"].protocol if "throughput" in known else {}
    return "time_per_output_token" in known or "new_tokens" in counted or decoded.get("counts") == "decoded tokens"


def _sentence(theoretical: float, wall: Row, text: bool) -> str:
    measured = wall.contrast
    said = f"{measured.value:.1f}× measured, {_promise(theoretical, 'bytes a token' if text else 'operations')}"
    share = measured.value / theoretical
    if measured.low > theoretical:  # else the measurement does not say that it is more
        rest = "fewer operations" if text else "precision"
        return f"{said}: {share:.1f} times what arithmetic alone explains, so engine or {rest} gave the rest"
    if measured.high >= theoretical:
        return f"{said}: what arithmetic explains, as far as the measurement can tell"
    return f"{said}: {100 * share:.0f}% of what arithmetic promises"


def _promise(theoretical: float, what: str) -> str:
    if math.isclose(theoretical, 1, abs_tol=0.005):
        return f"as many {what}"
    return f"{theoretical:.1f}× fewer {what}" if theoretical > 1 else f"{1 / theoretical:.1f}× more {what}"
