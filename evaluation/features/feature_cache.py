"""Features on disk, by everything that decides them: the images' content, the weights, the resizing, the libraries."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from compress.files.hashing import digest_json, touch
from compress.files.locks import lock_of, locked
from compress.store.kinds import ENDING
from evaluation.features.extractor import Extractor

FORMAT = 1  # raised when this package computes something else from the same images and weights
LIBRARIES = ("torch", "transformers", "pillow")
Features = NDArray[np.float32]


def features_key(extractor: Extractor, content: str, count: int) -> str:
    """What decides the features of the first `count` images of what `content` stands for."""
    libraries = [version(library) for library in LIBRARIES]
    return digest_json([FORMAT, content, count, extractor.digest, extractor.resize, "float32", libraries])


def remembered(
    memory: Path | None, extractor: Extractor, content: str, count: int, compute: Callable[[], Features]
) -> Features:
    """What `compute` gives, float32 [count, d], from `memory` when it has been computed before.

    Nothing is remembered without a folder or when `content`, a key or digest, is empty.
    """
    if memory is None or not content:
        return compute()
    key = features_key(extractor, content, count)
    file = memory / f"{key}{ENDING}"
    with _alone(memory, key):
        found = _read(file, count)
        if found is None:
            found = compute()
            _write(file, found)
        else:
            touch(file)
    return found


@contextmanager
def _alone(memory: Path, key: str) -> Iterator[None]:
    """Within it no other run computes the same; where nothing can be locked, both do."""
    with ExitStack() as held:
        with suppress(OSError):
            memory.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(lock_of(memory, key), lambda: None))
        yield


def _read(file: Path, count: int) -> Features | None:
    """None where there is nothing, or nothing whole: it is computed again then."""
    try:
        with safe_open(file, framework="numpy") as stored:
            found: Features = stored.get_tensor("features")
            digest = (stored.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    whole = found.dtype == np.float32 and found.ndim == 2 and len(found) == count and digest == _digest(found)
    return found if whole else None


def _write(file: Path, features: Features) -> None:
    """Best effort: a memory that cannot be written costs time, not correctness."""
    whole = np.ascontiguousarray(features)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=file.parent, prefix=".making-")
    except OSError:
        return
    os.close(handle)
    try:
        save_file({"features": whole}, made, metadata={"sha256": _digest(whole)})
        Path(made).replace(file)
    except (OSError, SafetensorError):
        return
    finally:
        Path(made).unlink(missing_ok=True)


def _digest(features: Features) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
