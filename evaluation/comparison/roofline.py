"""What was measured beside what arithmetic explains: operations for images, bytes read for each token of text.

A small batch of images is bound by its operations and the decoding of text by its weights on their way to the processor, so
those ratios are what a smaller model alone can give. More than that came from elsewhere, and less was lost on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from compress.artifact import Artifact
from compress.model.hook_settings import OFFLOAD
from compress.sources.models import parameter_count
from evaluation.comparison import Comparison, Row
from evaluation.metrics.size import weights_read

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a weight


@dataclass(frozen=True)
class Realised:
    """Two ratios, above 1 where the candidate is better, and `share`, the measured over the theoretical one."""

    theoretical: float
    measured: float
    share: float
    sentence: str


def bytes_read(artifact: Artifact, dtype: str) -> int:
    """Bytes of weights that one step of the main component reads: `Side.read_bytes`."""
    if not artifact.components:
        return 0
    main = artifact.components[artifact.main]
    if dtype and main.format == "torch" and not main.quantization:
        return WIDTHS[dtype] * parameter_count(artifact.folder(artifact.main))
    return sum(file.stat().st_size for file in weights_read(artifact, (artifact.main,)))


def realised(comparison: Comparison) -> Realised | None:
    """Pair the measured speed-up with the theoretical one.

    Images: `latency`, or else `throughput`, with `flops`. Text: `throughput` of decoding, or else `time_per_output_token`,
    with the bytes of weights, for each token reads every one of them once. None where either is missing or has no number.
    """
    known = {row.metric: row for row in comparison.rows}
    text = _is_text(known)
    names = ("throughput", "time_per_output_token") if text else ("latency", "throughput")
    wall = next((known[name] for name in names if name in known), None)
    theoretical = _fewer_bytes(comparison) if text else known["flops"].contrast.value if "flops" in known else math.nan
    if wall is None:
        return None
    measured = wall.contrast.value
    if not (math.isfinite(theoretical) and math.isfinite(measured) and theoretical > 0):
        return None
    alike = comparison.baseline.engine == comparison.candidate.engine
    return Realised(theoretical, measured, measured / theoretical, _sentence(theoretical, wall, text, alike))


def roof(comparison: Comparison) -> str:
    """How near the candidate's decoding comes to what memory allows: each step reads every weight once. "" for images.

    A model that fits into the processor's caches may read faster than memory does.
    """
    known, machine = {row.metric: row for row in comparison.rows}, comparison.machine
    on_gpu = "gpu_copy_gb_s" in machine  # the rate counts what a copy reads and what it writes
    if any(made["stage"] == OFFLOAD for made in comparison.candidate.lineage):  # whose weights come over the bus
        return ""
    most, step = machine.get("gpu_copy_gb_s" if on_gpu else "read_gb_s"), comparison.candidate.read_bytes
    if not (most and step and "throughput" in known and _is_text(known)):
        return ""
    wall = known["throughput"]
    read = step / 1e9 * wall.candidate.value / float(wall.protocol.get("batch", 1))
    if not math.isfinite(read):
        return ""
    return (
        f"Decoding reads {read:.1f} GB/s of weights, {100 * read / most:.0f}% of the "
        f"{most:g} GB/s that this {'GPU copies' if on_gpu else 'machine reads from memory'}"
    )


def _fewer_bytes(comparison: Comparison) -> float:
    before, after = comparison.baseline.read_bytes, comparison.candidate.read_bytes
    return before / after if after else math.nan


def _is_text(known: dict[str, Row]) -> bool:
    counted = known["flops"].protocol if "flops" in known else {}
    decoded = known["throughput"].protocol if "throughput" in known else {}
    return "time_per_output_token" in known or "new_tokens" in counted or decoded.get("counts") == "decoded tokens"


def _sentence(theoretical: float, wall: Row, text: bool, alike: bool) -> str:
    """alike: whether both sides run in the same engine and precision."""
    measured = wall.contrast
    message = f"{measured.value:.1f}× measured, {_promise(theoretical, 'bytes a token' if text else 'operations')}"
    share = measured.value / theoretical
    if measured.low > theoretical:  # else the measurement does not say that it is more
        rest = "fewer operations or quicker calls" if text else "fewer or quicker calls"
        if not alike:
            rest = f"engine, {'fewer operations' if text else 'precision'} or quicker calls"
        return f"{message}: {share:.1f} times what arithmetic alone explains, so {rest} gave the rest"
    if measured.high >= theoretical:
        return f"{message}: what arithmetic explains, as far as the measurement can tell"
    return f"{message}: {100 * share:.0f}% of what arithmetic promises"


def _promise(theoretical: float, what: str) -> str:
    if math.isclose(theoretical, 1, abs_tol=0.005):
        return f"as many {what}"
    return f"{theoretical:.1f}× fewer {what}" if theoretical > 1 else f"{1 / theoretical:.1f}× more {what}"
