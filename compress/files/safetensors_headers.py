"""What the head of a safetensors file says: the name, number type and shape of every tensor, without reading one."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path

from compress.errors import ModelError
from compress.files.lfs_pointers import refuse_pointer

_GARBLED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)  # by a header
KEPT = 64  # headers of files
_SCALARS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i"}  # of `struct`


@dataclass(frozen=True)
class Stored:
    """One tensor of a file. `begin` is where its bytes start, from the start of the file."""

    dtype: str  # as safetensors spells it: F32, BF16
    shape: tuple[int, ...]
    begin: int

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(file: Path) -> Header:
    """The head of a safetensors file.

    Raises:
        ModelError: it does not read, or the file is shorter than it says.
    """
    refuse_pointer(file, ModelError)
    try:
        found = file.stat()
        return _read(file, (found.st_ino, found.st_size, found.st_mtime_ns))
    except _GARBLED as error:
        raise ModelError(
            f"truncated or broken safetensors: {error}", place=str(file), fix="fetch or save it again"
        ) from error


@lru_cache(KEPT)
def _read(file: Path, identity: tuple[int, ...]) -> Header:
    """A header, once for a file as it is: a plan looks at each a dozen times."""
    with file.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        if length > file.stat().st_size:
            raise ValueError("the header is longer than the file")
        message = json.loads(stream.read(length))
    metadata = message.pop("__metadata__", None) or {}
    end = 8 + length + max((one["data_offsets"][1] for one in message.values()), default=0)
    if end != file.stat().st_size:
        raise ValueError(f"{file.stat().st_size} bytes where the header says {end}")
    tensors = {
        name: Stored(str(one.get("dtype", "")), tuple(map(int, one["shape"])), 8 + length + one["data_offsets"][0])
        for name, one in message.items()
    }
    return Header(tensors, {str(name): str(text) for name, text in metadata.items()})


def read_scalar(file: Path, stored: Stored) -> float:
    """The single number in a tensor.

    Raises:
        ModelError: it holds more than one, or is of a type that has none.
    """
    if stored.count != 1 or stored.dtype not in (*_SCALARS, "BF16"):
        message = f"a single number is stored as {stored.dtype} of shape {list(stored.shape)}"
        raise ModelError(message, place=str(file), fix="save it again")
    with file.open("rb") as stream:
        stream.seek(stored.begin)
        if stored.dtype == "BF16":  # the upper half of a float32
            return float(struct.unpack("<f", b"\0\0" + stream.read(2))[0])
        kind = _SCALARS[stored.dtype]
        return float(struct.unpack(f"<{kind}", stream.read(struct.calcsize(kind)))[0])
