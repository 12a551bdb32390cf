"""What is known of a TensorRT engine without opening it, which takes the very GPU it was built for: everything is written
down while it is built, and compared with its ONNX and the machine before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from compress.engines.onnx import GRAPH, WEIGHTS
from compress.errors import ModelError
from compress.files.hashing import digest_file, digest_json

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # fewest, usual, most
OPEN = -1  # the size of an axis that varies from call to call
_DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "HALF": "float16",
    "BF16": "bfloat16",
}  # ONNX's and TensorRT's names


@dataclass(frozen=True)
class Port:
    """An input or output: its name in the graph, torch's name of its type, and its sizes."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Ports:
    """A graph from outside. `digest` is that of the ONNX with its weights."""

    digest: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Target:
    """Where an engine runs: a compute capability, and the one library version that reads it."""

    gpu: str
    library: str
    version: str

    def __str__(self) -> str:
        return f"{self.gpu} ({self.library} {self.version})"


@dataclass(frozen=True)
class Record:
    """An engine: its file with its digest, what it was built from and for, and the sizes of a call that it takes.

    layers: how many of the network's layers give values of each type; the network is strongly typed, so the engine computes so.
    """

    file: str
    digest: str
    target: Target
    precision: str
    layers: Mapping[str, int]
    ports: Ports
    profile: Mapping[str, Range]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def record_from(values: Mapping[str, Any]) -> Record:
    """A record as `engine.json` holds it."""
    ports = {side: tuple(_port(p) for p in values["ports"][side]) for side in ("inputs", "outputs")}
    profile = {name: tuple(map(tuple, sizes)) for name, sizes in values["profile"].items()}
    typed = {"target": Target(**values["target"]), "ports": Ports(values["ports"]["digest"], **ports)}
    return Record(**{**values, **typed, "profile": profile})


def read_ports(folder: Path) -> Ports:
    """What the ONNX in a folder says of itself; its weights are hashed and not read.

    Raises:
        ModelError: it is gone, or does not read.
    """
    try:
        graph = onnx.load(str(folder / GRAPH), load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise ModelError(
            f"the ONNX that the engines were built from does not read: {error}",
            place=str(folder / GRAPH),
            fix="build them again with build.tensorrt",
        ) from error
    return Ports(digest_onnx(folder), tuple(map(_onnx_port, graph.input)), tuple(map(_onnx_port, graph.output)))


def digest_onnx(folder: Path) -> str:
    """sha256 over the graph and the file of its weights."""
    files = [f for f in (folder / GRAPH, folder / WEIGHTS) if f.is_file()]
    return digest_json({f.name: digest_file(f) for f in files})


def check_record(
    record: Record, onnx: Ports, target: Target, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[str]:
    """Every reason not to use an engine for its ONNX on a machine; none where it fits.

    Args:
        shapes: of the inputs of a call that it shall take, by name.
    """
    found = []
    if record.target.gpu != target.gpu:
        found.append(f"it was built for {record.target.gpu}, and this is {target.gpu}")
    if (record.target.library, record.target.version) != (target.library, target.version):
        made, here = (f"{t.library} {t.version}" for t in (record.target, target))
        found.append(f"it was built by {made}, and here is {here}")
    if record.ports.digest != onnx.digest:
        found.append("it was built from another ONNX than the one beside it")
    found += _differing(record.ports.inputs, onnx.inputs, "input")
    found += _differing(record.ports.outputs, onnx.outputs, "output")
    found += _unfit(record)
    return found + outside(record, shapes or {})


def outside(record: Record, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The inputs of a call whose shapes an engine's profile does not take, in words."""
    found = []
    for name, shape in shapes.items():
        low, _, high = record.profile[name]
        within = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        if not within:
            found.append(f"{name} {list(shape)} lies outside its profile, {list(low)} to {list(high)}")
    return found


def _differing(ours: Sequence[Port], theirs: Sequence[Port], side: str) -> list[str]:
    known = {port.name: port for port in theirs}
    found = [f"it has no {side} {name}" for name in known.keys() - {port.name for port in ours}]
    for port in ours:
        other = known.get(port.name)
        if other is None:
            found.append(f"its {side} {port.name} is none of the ONNX")
        elif port.dtype != other.dtype or len(port.shape) != len(other.shape):
            found.append(
                f"its {side} {port.name} is {port.dtype} {list(port.shape)}, not {other.dtype} {list(other.shape)}"
            )
    return found


def _unfit(record: Record) -> list[str]:
    """Inputs whose profile is lacking, or falls, or contradicts an axis of fixed size."""
    found = []
    for port in record.ports.inputs:
        low, usual, high = record.profile.get(port.name, ((), (), ()))
        sizes = list(zip(port.shape, low, usual, high, strict=False))
        rises = all(a <= b <= c and (size == OPEN or a == c == size) for size, a, b, c in sizes)
        if port.name not in record.profile or len(low) != len(port.shape) or not rises:
            found.append(f"the profile of its input {port.name} does not fit {list(port.shape)}")
    return found


def _port(values: Mapping[str, Any]) -> Port:
    return Port(values["name"], values["dtype"], tuple(values["shape"]))


def _onnx_port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    sizes = tuple(d.dim_value if d.HasField("dim_value") else OPEN for d in kind.shape.dim)
    return Port(value.name, dtype_name(onnx.TensorProto.DataType.Name(kind.elem_type)), sizes)


def dtype_name(name: str) -> str:
    """torch's name of a type that ONNX or TensorRT names."""
    return _DTYPES.get(name, name.lower())
