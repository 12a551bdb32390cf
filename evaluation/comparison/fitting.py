"""What stands beside an offloaded candidate, and may itself be too large for the GPU."""

from __future__ import annotations

from dataclasses import replace

from compress.artifact import Artifact
from compress.events import Emit, Event
from compress.machine.devices import Opening, kind_of
from compress.model.hook_settings import OFFLOAD, offloaded
from compress.quantization.sizes import held_bytes, number_bytes
from evaluation.comparison.roofline import WIDTHS

ROOM = 0.9  # of a GPU's memory for weights; the rest is for all that a call makes


def fitting(side: str, artifact: Artifact, candidate: Artifact, opening: Opening, emit: Emit) -> Artifact:
    """An artifact as it is, or, where its weights are too large for the GPU that its offloaded candidate runs on, offloaded in the same way.
    That is stated, for its times are then others too.

    Args:
        opening: of this side; its device is the candidate's.
    """
    if kind_of(opening.device) != "cuda" or not offloaded(candidate) or offloaded(artifact):
        return artifact
    size, there = _weights(artifact, opening.dtype), device_bytes(opening.device)
    if size <= ROOM * there:
        return artifact
    alike = tuple(
        one for one in candidate.settings.hook if one.name == OFFLOAD and one.component in artifact.components
    )
    message = f"its weights take {size / 1e9:.3g} GB and the GPU has {there / 1e9:.3g} GB: they take turns there as the candidate's do"
    emit(Event("warning", side, message))
    return replace(artifact, settings=replace(artifact.settings, hook=alike, needs_pare=True))


def _weights(artifact: Artifact, dtype: str | None) -> int:
    """Bytes of an artifact's weights in the number type that they are opened in."""
    found = 0
    for name in artifact.working:
        stored = number_bytes(artifact, name)
        found += held_bytes(artifact, name) * (WIDTHS[dtype] if dtype else stored) // stored
    return found


def device_bytes(device: str) -> int:
    """The memory of a GPU."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)
