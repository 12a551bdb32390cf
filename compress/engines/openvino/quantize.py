"""Quantization of OpenVINO graphs with NNCF: silent, without telemetry, and with a count of what it did."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

Feed = Mapping[str, NDArray[Any]]
NARROW = ("i8", "u8", "i4", "u4")


def quantize_activations(model: openvino.Model, feeds: Sequence[Feed]) -> openvino.Model:
    """Eight-bit weights and activations, their ranges read off `feeds`, each one call's inputs by argument name.

    Where products of bytes overflow, weights use half their range.
    """
    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        fix = AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE) if bytes_overflow() else None
        data = nncf.Dataset([{f"input.{name}": value for name, value in feed.items()} for feed in feeds])
        return nncf.quantize(
            model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds), advanced_parameters=fix
        )


def bytes_overflow() -> bool:
    """Whether this processor adds two products of bytes in 16 bits: x86 without VNNI or AMX."""
    machine, *flags = machine_fact("isa").split()
    return machine == "x86_64" and not any("vnni" in flag or flag == "amx_int8" for flag in flags)


def compress_weights(
    model: openvino.Model, bits: int, group_size: int, symmetric: bool, ratio: float
) -> openvino.Model:
    """Weights alone. In 4 bits a `ratio` of them in groups along the input channels, the others in 8.

    A layer whose channels `group_size` does not divide gets the largest smaller group that does, down to 8.
    """
    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

        kind = "SYM" if symmetric else "ASYM"
        mode = getattr(nncf.CompressWeightsMode, f"INT{bits}_{kind}")
        if bits == 8:
            return nncf.compress_weights(model, mode=mode)
        fallback = AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=8
        )
        options = {"ratio": ratio, "group_size": group_size, "all_layers": ratio == 1, "advanced_parameters": fallback}
        return nncf.compress_weights(model, mode=mode, **options)


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
