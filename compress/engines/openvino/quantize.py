"""Quantization of OpenVINO graphs with NNCF: silent, without telemetry, and with a count of what it did."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from compress.engines.module import ENGINE
from compress.engines.openvino import MODEL
from compress.engines.openvino.core import signals_recorded
from compress.engines.openvino.runtime import save_graph
from compress.machine.deps import installed, need
from compress.machine.facts import machine_fact
from compress.quantization.engine_sizes import SMALLEST

Feed = Mapping[str, NDArray[Any]]
NARROW = ("i8", "u8", "i4", "u4")
SMOOTH = 0.95  # NNCF's own alpha


@dataclass(frozen=True)
class Compression:
    """How weights alone become narrow.

    ratio: of those that can have 4 bits; NNCF chooses by `metric`, "" its own, which looks at the weights alone. The others get 8.
    ignored: operations that stay as they are. wide: those that get 8 bits. corrections: what makes up for rounding, by NNCF's names.
    """

    bits: int
    group_size: int
    symmetric: bool
    ratio: float = 1.0
    metric: str = ""
    ignored: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    corrections: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """As NNCF calls it."""
        return f"INT{self.bits}_{'SYM' if self.symmetric else 'ASYM'}"


def quantize_activations(
    model: openvino.Model, feeds: Sequence[Feed], *, smooth: float | None = SMOOTH, ignored: Sequence[str] = ()
) -> openvino.Model:
    """Eight-bit weights and activations, their ranges read off `feeds`, each one call's inputs by argument name.

    Where products of bytes overflow, weights use half their range.

    Args:
        smooth: how much of the activations' outliers matrix products take over into their weights (SmoothQuant's alpha); None: nothing.
        ignored: operations that stay as they are.
    """
    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
            OverflowFix,
        )

        given: dict[str, Any] = {"overflow_fix": OverflowFix.ENABLE} if bytes_overflow() else {}
        if smooth != SMOOTH:
            given["smooth_quant_alphas"] = AdvancedSmoothQuantParameters(matmul=-1 if smooth is None else smooth)
        more = {"ignored_scope": nncf.IgnoredScope(names=list(ignored))} if ignored else {}
        return nncf.quantize(
            model,
            _dataset(nncf, feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            advanced_parameters=AdvancedQuantizationParameters(**given) if given else None,
            **more,
        )


def quantize_hybrid(
    model: openvino.Model,
    feeds: Sequence[Feed],
    *,
    convolutions: Sequence[str],
    others: Sequence[str],
    ignored: Sequence[str],
) -> openvino.Model:
    """Eight-bit weights and activations of convolutions, and of products of activations; of all other layers the weights alone.

    Source: optimum-intel's hybrid quantization of diffusion models, which leaves SmoothQuant out.
    """
    with _quiet_nncf() as nncf:
        scope = nncf.IgnoredScope(names=[*convolutions, *ignored])
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=scope)
    return quantize_activations(model, feeds, smooth=None, ignored=(*others, *ignored))


def _dataset(nncf: Any, feeds: Sequence[Feed]) -> Any:
    return nncf.Dataset([{f"input.{name}": value for name, value in feed.items()} for feed in feeds])


def bytes_overflow() -> bool:
    """Whether this processor adds two products of bytes in 16 bits: x86 without VNNI or AMX."""
    machine, *flags = machine_fact("isa").split()
    return machine == "x86_64" and not any("vnni" in flag or flag == "amx_int8" for flag in flags)


def compress_weights(model: openvino.Model, how: Compression, feeds: Sequence[Feed] = ()) -> openvino.Model:
    """Weights alone. In 4 bits a `ratio` of them in groups along the input channels, the others in 8.

    A layer whose channels the group size does not divide gets the largest power of two that does, and 8 bits where that is below 8.

    Args:
        feeds: calls that corrections and a metric look at.
    """
    with _quiet_nncf() as nncf:
        mode = getattr(nncf.CompressWeightsMode, how.mode)
        scope = {"ignored_scope": nncf.IgnoredScope(names=[*how.ignored])} if how.ignored else {}
        if how.bits == 8:
            return nncf.compress_weights(model, mode=mode, **scope)
        if how.ignored or how.wide:
            scope = {"ignored_scope": nncf.IgnoredScope(names=[*how.ignored, *how.wide])}
        model = nncf.compress_weights(model, mode=mode, **scope, **_four_bits(nncf, how, feeds))
    return compress_weights(model, replace(how, bits=8, wide=())) if how.wide else model


def _four_bits(nncf: Any, how: Compression, feeds: Sequence[Feed]) -> dict[str, Any]:
    """Arguments of NNCF beside mode and scope."""
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

    fallback = AdvancedCompressionParameters(
        group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=SMALLEST
    )
    options: dict[str, Any] = {"ratio": how.ratio, "group_size": how.group_size, "all_layers": how.ratio == 1}
    options |= dict.fromkeys(how.corrections, True)
    if how.metric:
        options["sensitivity_metric"] = nncf.SensitivityMetric(how.metric)
    if feeds:
        options |= {"dataset": _dataset(nncf, feeds), "subset_size": len(feeds)}
    return options | {"advanced_parameters": fallback}


def count_quantized(model: openvino.Model) -> Counter[str]:
    """How many ranges and how many narrow weights a graph holds: FakeQuantize operations, constants by their type."""
    counts: Counter[str] = Counter()
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind == "FakeQuantize":
            counts["FakeQuantize"] += 1
        elif kind == "Constant" and operation.get_output_size() == 1:
            element = operation.get_output_element_type(0).get_type_name()
            # Scalars and vectors are zero points and scales; a weight has rows and columns.
            if element in NARROW and np.prod(operation.get_output_shape(0)) > operation.get_output_shape(0)[0]:
                counts[element] += 1
    return counts


def read_graph(folder: Path) -> openvino.Model:
    """The graph in an engine's folder, its weights in memory of its own (the files may be replaced)."""
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    return core.read_model(str(folder / MODEL))


def write_graph(model: openvino.Model, folder: Path, settings: bytes) -> None:
    """Write a graph over the one in `folder`, to be compiled and called as before."""
    save_graph(model, folder)
    (folder / ENGINE).write_bytes(settings)


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF, with its progress bars and log caught and nothing sent anywhere."""
    silence_telemetry()
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), signals_recorded():
            yield need("nncf")
    finally:
        logging.disable(before)


def silence_telemetry() -> None:
    """OpenVINO's tools report their use over the network unless a user has opted out; for pare nobody has opted in."""
    if not installed("openvino_telemetry"):
        return
    telemetry = need("openvino_telemetry").Telemetry
    for name in (
        "start_session",
        "end_session",
        "send_event",
        "send_error",
        "send_stack_trace",
        "init",
        "force_shutdown",
    ):
        setattr(telemetry, name, lambda *args, **kwargs: None)
