"""How wide the weights are that a stage made, reported after it ran, with a warning where they are not what was asked for."""

from __future__ import annotations

from compress.artifact import Artifact
from compress.events import Emit, Event
from compress.model import bit_widths
from compress.planning.nodes import Node
from compress.quantization.linears import left_wide


def tell_widths(node: Node, before: Artifact, after: Artifact, emit: Emit) -> None:
    """Say how wide the weights of the components are that a stage made."""
    for name in after.packed(node.components) if node.stage.makes else ():
        if found := bit_widths.shares(after, name):
            facts = {"component": name, "weights": bit_widths.reported(found)}
            emit(Event("note", node.id, f"{name}: {facts['weights']}", facts=facts))
        left = _left(before, name, getattr(node.params, "ignore", ()))
        if getattr(node.params, "bits", None) == "auto":
            continue  # what a budget leaves wide was chosen
        for message in bit_widths.warnings(before, after, name, left):
            emit(Event("warning", node.id, message))


def _left(artifact: Artifact, name: str, ignore: tuple[str, ...]) -> int:
    """The weights of a component that a quantizer leaves as they are by default, and those that a recipe ignores."""
    if artifact.components[name].format == "openvino":
        from compress.engines.openvino.choice import left_in_graph

        return left_in_graph(artifact, name, ignore)
    return left_wide(artifact, name, ignore)
