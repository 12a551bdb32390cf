"""What the weights of a graph that lies in a folder can take, in 4 or 8 bits a layer."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from compress.engines.openvino import WEIGHTS
from compress.engines.openvino.layers import GraphLayer, layers
from compress.quantization.automatic import Sizes
from compress.quantization.engine_sizes import Grid, Matrix, widths_of


def matrix_of(layer: GraphLayer) -> Matrix:
    """A layer, as far as its size goes."""
    return Matrix(layer.weights, layer.row, layer.convolves)


def graph_sizes(folder: Path, grid: Grid, ignored: Container[GraphLayer] = ()) -> Sizes:
    """What the layers can take, by the first of their names, but for those that stay as they are."""
    free = [layer for layer in layers(folder) if layer not in ignored]
    whole = (folder / WEIGHTS).stat().st_size
    fixed = whole - sum(layer.size for layer in free)
    return Sizes({layer.names[0]: widths_of(matrix_of(layer), grid) for layer in free}, fixed, whole)
