"""Calls to a component, written down while a pipeline works: the inputs it really gets, at the timesteps it really sees.

One safetensors file a generated batch. A tensor that comes again, as a prompt's embedding does at every step, is stored once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

Call = Mapping[str, Any]  # arguments by name


def write_calls(path: Path, calls: Iterable[Call]) -> int:
    """Store calls; the file appears whole or not at all. Returns how many there are.

    Raises:
        TypeError: an argument is neither a tensor, nor JSON, nor a mapping of these.
    """
    tensors: dict[str, torch.Tensor] = {}

    def spell(value: object) -> dict[str, Any]:
        if isinstance(value, torch.Tensor):
            name = next((n for n, known in tensors.items() if _same(known, value)), str(len(tensors)))
            if name not in tensors:
                tensors[name] = value.clone(
                    memory_format=torch.contiguous_format
                )  # views of one storage are not stored
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": {key: spell(one) for key, one in value.items()}}
        return {"value": value}

    index = [{name: spell(value) for name, value in call.items()} for call in calls]
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"calls": json.dumps(index)})
    partial.rename(path)
    return len(index)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.device == other.device and one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(one, other)


def count_calls(path: Path) -> int:
    """How many calls a file holds; 0 if there is none that reads."""
    try:
        with safe_open(path, framework="pt") as stored:
            return len(json.loads(stored.metadata()["calls"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0


def read_call(path: Path, number: int) -> dict[str, Any]:
    """The `number`-th call of a file, its arguments by name."""
    with safe_open(path, framework="pt") as stored:
        index = json.loads(stored.metadata()["calls"])[number]

        def read(spelt: Mapping[str, Any]) -> Any:
            if "tensor" in spelt:
                return stored.get_tensor(spelt["tensor"])
            if "dict" in spelt:
                return {key: read(one) for key, one in spelt["dict"].items()}
            return spelt["value"]

        return {name: read(spelt) for name, spelt in index.items()}
