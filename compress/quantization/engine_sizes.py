"""What the weights of an OpenVINO graph take in 4 or 8 bits a layer, by the rules of NNCF; of a graph that is still to be built, as far as
the headers of the torch model tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from compress.artifact import Artifact
from compress.files.safetensors_headers import Stored
from compress.quantization.automatic import Sizes
from compress.quantization.linears import STACKED_TRANSPOSED, TRANSPOSED
from compress.quantization.packed_sizes import stored_bytes, stored_tensors, to_be_cut
from compress.quantization.patterns import matches

SMALLEST = 8  # weights that share a scale in 4 bits
FOUR, EIGHT = 4, 8
AUTOENCODERS = ("Autoencoder", "VQModel", "ConsistencyDecoder")
UNSEEN = 0.05  # of the weights: constants that only the exporter makes, such as tables of angles


@dataclass(frozen=True)
class Matrix:
    """weights: all of them; row: those of one output channel. convolves: whether they are a convolution's, which NNCF gives no 4 bits."""

    weights: int
    row: int
    convolves: bool


@dataclass(frozen=True)
class Grid:
    """How weights are rounded: how many share a scale in 4 bits, and whether codes lie symmetrically around zero."""

    group_size: int
    symmetric: bool


def narrow_bytes(matrix: Matrix, bits: int, grid: Grid) -> int:
    """What a layer takes once it is narrow: codes, scales in float16, zero points; in 4 bits where NNCF gives it 4."""
    rows = matrix.weights // matrix.row
    if bits == FOUR and (group := group_of(matrix, grid.group_size)):
        scales = rows * (matrix.row // group)
        return -(-matrix.weights // 2) + 2 * scales + (0 if grid.symmetric else -(-scales // 2))
    # What is left over in the pass of 4 bits gets NNCF's own 8, with zero points.
    return matrix.weights + (2 if grid.symmetric and bits == EIGHT else 3) * rows


def group_of(matrix: Matrix, size: int) -> int:
    """The weights that share a scale in 4 bits; 0 where NNCF gives the layer no 4: convolutions, and rows that no group divides."""
    if matrix.convolves:
        return 0
    if matrix.row % size == 0:
        return size
    largest = matrix.row & -matrix.row  # the power of two in it
    return largest if largest >= SMALLEST else 0


def widths_of(matrix: Matrix, grid: Grid) -> dict[int, int]:
    """The bytes of a layer in each width that it may have: 8 bits alone where NNCF gives it no 4."""
    four, eight = (narrow_bytes(matrix, bits, grid) for bits in (FOUR, EIGHT))
    return {FOUR: four, EIGHT: eight} if four < eight else {EIGHT: eight}


def planned_sizes(artifact: Artifact, name: str, grid: Grid, ignore: Iterable[str] = ()) -> Sizes | None:
    """What the layers of a graph can take that is still to be built, roughly; None where headers do not tell, as of an autoencoder, whose
    engine is its decoder.

    Args:
        ignore: patterns of layers that stay as they are, by torch's names; one that names none may be the graph's.
    """
    tensors = stored_tensors(artifact, name)
    found = dict(_matrices(tensors, artifact.known_config(name)))
    patterns = tuple(ignore)
    part = artifact.components[name].kind.startswith(AUTOENCODERS)
    if part or not found or to_be_cut(artifact, name) or not all(any(matches(p, n) for n in found) for p in patterns):
        return None
    free = [n for n in found if not any(matches(pattern, n) for pattern in patterns)]
    whole = sum(map(stored_bytes, tensors.values()))
    fixed = whole - sum(stored_bytes(tensors[n]) for n in free)
    sizes = Sizes({n: widths_of(found[n], grid) for n in free}, fixed, whole)
    vectors = sum(
        stored_bytes(tensor) for tensor in tensors.values() if len(tensor.shape) < 2
    )  # equal ones are kept once
    return replace(sizes, slack=UNSEEN + vectors / max(1, sizes.least))


def _matrices(tensors: Mapping[str, Stored], config: Mapping[str, object]) -> Iterator[tuple[str, Matrix]]:
    """The tensors that are weights of layers."""
    kind = str(config.get("model_type", ""))
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        shape = tensor.shape
        if len(shape) < 2 or (last != "weight" and "experts" not in name.split(".")):
            continue
        row = prod(shape[1:])
        if len(shape) == 3 and "experts" in name.split("."):
            row = shape[1] if kind in STACKED_TRANSPOSED else shape[2]
        elif kind in TRANSPOSED and len(shape) == 2 and module.rpartition(".")[2].startswith("c_"):
            row = shape[0]
        yield name, Matrix(tensor.count, row, len(shape) > 2 and "experts" not in name.split("."))
