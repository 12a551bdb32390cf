"""Whether weights are numbers at all: read piece by piece, with numpy alone, and remembered by what a file is, so that it is paid once.

A number is not finite where every bit of its exponent is set, so a type that numpy does not have needs no conversion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.errors import ManyProblems, ModelError, Problem
from compress.files.hashing import digest_json, touch
from compress.files.safetensors_headers import Stored, read_header
from compress.model.weight_files import loaded_files
from compress.pipelines.index import LEFT_OUT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FINITE = "finite"  # what a note is of
VERSION = 1
PIECE = 1 << 22  # numbers looked at at once
# Of each type of number: the unsigned one that is as wide, and the bits that are all set where it is not finite.
EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("|u1", 0x7C),
    "F8_E4M3": ("|u1", 0x7F),  # which has no infinity: only this one pattern is no number
}
MASKS = "mask"  # in the name of what is added to scores, where −∞ is meant
FIX = "give another checkpoint, or save this one anew"


def refuse_nonfinite(artifact: Artifact, key: str, memory: Path | None = None) -> None:
    """Read the weights of every torch component, but for those of a model that was read before.

    Args:
        key: what stands for the model's content.
        memory: the folder where it is noted that all of them are finite.

    Raises:
        ModelError: some are not, or do not read; of several components ManyProblems.
    """
    note = memory / digest_json([FINITE, VERSION, key]) if memory else None
    if _known(note):
        return
    problems = tuple(_nonfinite(artifact))
    if len(problems) > 1:
        raise ManyProblems(problems)
    for problem in problems:
        raise ModelError(problem.message, place=problem.place, fix=problem.fix)
    _note(note)


def _nonfinite(artifact: Artifact) -> Iterator[Problem]:
    """Each component that holds values which are not finite."""
    seen: set[Path] = set()
    for name, part in artifact.components.items():
        files = () if part.format != "torch" or name in LEFT_OUT else loaded_files(artifact, name)
        bad = [tensor for file in files if file not in seen for tensor in not_finite(file)]
        seen |= set(files)  # which components may share
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            message = f"`{bad[0]}`{more} in {name} holds values that are not finite, before any stage"
            yield Problem(str(artifact.path), message, FIX)


def refuse_nonfinite_adapter(file: Path, digest: str, memory: Path | None = None) -> None:
    """As `refuse_nonfinite`, of an adapter, which is small enough to be read by a plan.

    Args:
        file: its weights; digest: of its content.

    Raises:
        ModelError: it holds values that are not finite.
    """
    note = memory / digest_json([FINITE, VERSION, digest]) if memory else None
    if _known(note):
        return
    if bad := next(not_finite(file), ""):
        message = f"`{bad}` of the adapter holds values that are not finite"
        raise ModelError(message, place=str(file), fix="fetch it again, or train it anew")
    _note(note)


def not_finite(file: Path) -> Iterator[str]:
    """The names of the tensors of a safetensors file that hold a NaN or an infinity.

    Raises:
        ModelError: it does not read.
    """
    for name, stored in read_header(file).tensors.items():
        if stored.dtype in EXPONENTS and stored.count and MASKS not in name and _holds_one(file, stored):
            yield name


def _holds_one(file: Path, stored: Stored) -> bool:
    import numpy as np

    kind, bits = EXPONENTS[stored.dtype]
    every = np.array(bits, np.dtype(kind))
    values: NDArray[np.unsignedinteger[Any]] = np.memmap(file, kind, "r", stored.begin, (stored.count,))
    pieces = (values[start : start + PIECE] & every for start in range(0, stored.count, PIECE))
    return any(bool((piece == every).any()) for piece in pieces)


def _known(note: Path | None) -> bool:
    if note is None or not note.is_file():
        return False
    touch(note)
    return True


def _note(note: Path | None) -> None:
    """Best effort: what cannot be noted is read again."""
    with suppress(OSError):
        if note is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
