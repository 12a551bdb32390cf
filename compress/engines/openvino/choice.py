"""Which layers of a graph stay as they are, and which get 4 or 8 bits: by what they are called, and by what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.artifact import Artifact
from compress.engines.openvino.layers import GraphLayer, digests, layers
from compress.engines.openvino.quantize import Compression
from compress.engines.openvino.sizes import graph_sizes
from compress.errors import ManyProblems, Problem, UserError
from compress.params import Fault
from compress.quantization.automatic import share_out
from compress.quantization.budgets import Choice
from compress.quantization.engine_sizes import Grid
from compress.quantization.patterns import matches, pattern_faults
from compress.quantization.sensitivity import STAGE, Layer, read

KNOWN = 0.9  # share of a graph's weights whose costs must be known


@dataclass(frozen=True)
class Chosen:
    """The operations that get 8 bits, and the choice that this follows from."""

    wide: tuple[str, ...]
    choice: Choice


def graph_faults(folder: Path, patterns: Iterable[str], further: Mapping[str, str] | None = None) -> tuple[Fault, ...]:
    """What is wrong with patterns of a graph's layers that stay as they are: those that are none, or that name no layer.

    Args:
        further: what else a layer is called, by the first of its names in the graph.
    """
    found = layers(folder)
    names = tuple(name for layer in found for name in _names(layer, further or {}))
    return pattern_faults(patterns, names, f"the {len(found)} layers with weights of this graph", names)


def ignored_layers(artifact: Artifact, name: str, patterns: Sequence[str]) -> frozenset[GraphLayer]:
    """The layers that the patterns name: by the graph's own names, and by torch's where their sensitivities were measured.

    Raises:
        UserError: a pattern is none, or names none.
    """
    if not patterns:
        return frozenset()
    folder = artifact.folder(name)
    torchs = {layer.names[0]: called for layer, (called, _) in _measured(artifact, name).items()}
    if faults := graph_faults(folder, patterns, torchs):
        raise ManyProblems(tuple(Problem(str(folder), fault.message, fault.fix) for fault in faults))
    return frozenset(
        layer
        for layer in layers(folder)
        if any(matches(pattern, called) for pattern in patterns for called in _names(layer, torchs))
    )


def left_in_graph(artifact: Artifact, name: str, patterns: Sequence[str]) -> int:
    """The weights of a graph that are tables of embeddings, or of layers that the patterns name."""
    ignored = ignored_layers(artifact, name, patterns)
    return sum(one.weights for one in layers(artifact.folder(name)) if one.kind == "Gather" or one in ignored)


def choose_widths(
    artifact: Artifact, name: str, budget: float | str, how: Compression, ignored: frozenset[GraphLayer]
) -> Chosen:
    """4 or 8 bits a layer, so that they cost least and all weights take no more than the budget.

    Raises:
        UserError: the costs are of other weights, or no choice comes within 2% of the budget; it names the nearest.
    """
    folder, costs = artifact.folder(name), _measured(artifact, name)
    free = [layer for layer in layers(folder) if layer not in ignored]
    _be_measured(artifact, name, free, costs)
    sizes = graph_sizes(folder, Grid(how.group_size, how.symmetric), ignored)
    known = {layer.names[0]: one.cost for layer, (_, one) in costs.items()}
    found = share_out(artifact, name, sizes, known, budget)
    return Chosen(tuple(node for layer in free if found.bits[layer.names[0]] == 8 for node in layer.nodes), found)


def _measured(artifact: Artifact, name: str) -> dict[GraphLayer, tuple[str, Layer]]:
    """By layer of the graph, what torch calls it and what it costs; {} where nothing was measured."""
    part = read(artifact).get(name)
    if part is None:
        return {}
    folder = artifact.folder(name)
    by_digest = digests(folder, layers(folder))
    return {
        by_digest[layer.fingerprint]: (called, layer)
        for called, layer in part.layers.items()
        if layer.fingerprint in by_digest
    }


def _be_measured(
    artifact: Artifact, name: str, free: Sequence[GraphLayer], costs: Mapping[GraphLayer, tuple[str, Layer]]
) -> None:
    total, known = sum(one.weights for one in free), sum(one.weights for one in free if one in costs)
    if known < KNOWN * total:
        message = f"{STAGE} measured {known / max(1, total):.0%} of the weights that `{name}` has now"
        fix = f"put {STAGE} right before the engine is built, behind all that changes weights"
        raise UserError(message, place=str(artifact.path), fix=fix)


def _names(layer: GraphLayer, further: Mapping[str, str]) -> tuple[str, ...]:
    return (*layer.names, *((further[layer.names[0]],) if layer.names[0] in further else ()))
