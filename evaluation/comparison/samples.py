"""Samples on disk, beside `result.json`: every number can be computed again from them, and another run be compared with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.comparison import respelt
from evaluation.values import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDES = ("baseline", "candidate")


def keep(folder: Path, name: str, baseline: Sample, candidate: Sample) -> None:
    """Write both sides' samples of a metric into `folder`, with the units they belong to."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, message = {}, {}
    for side, sample in zip(SIDES, (baseline, candidate), strict=True):
        tensors[side] = sample.values
        if sample.reference is not None:
            tensors[f"{side}.reference"] = sample.reference
        if sample.moments is not None:
            tensors[f"{side}.mu"], tensors[f"{side}.sigma"] = sample.moments
        message[side] = json.dumps(
            {"unit_ids": sample.unit_ids, "protocol": dict(sample.protocol), "note": sample.note}, default=str
        )
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / f"{name}.safetensors", metadata=message
    )


def read(folder: Path, name: str) -> tuple[Sample, Sample]:
    """What `keep` wrote: baseline's and candidate's.

    Raises:
        OSError, ValueError: it is absent or broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / f"{name}.safetensors", framework="numpy") as stored:
            message = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (no mapping)
        return _sample("baseline", tensors, message), _sample("candidate", tensors, message)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{folder / name}.safetensors holds no samples: {error}") from error


def _sample(side: str, tensors: dict[str, NDArray[Any]], message: dict[str, str]) -> Sample:
    stored = json.loads(message[side])
    moments = (tensors[f"{side}.mu"], tensors[f"{side}.sigma"]) if f"{side}.mu" in tensors else None
    return Sample(
        tuple(stored["unit_ids"]),
        tensors[side],
        tensors.get(f"{side}.reference"),
        moments,
        respelt(stored["protocol"]),
        stored["note"],
    )
