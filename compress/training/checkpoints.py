"""Where a training stands, on disk: `state-STEP.safetensors`, and `state.json`, which names it and is renamed last."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file

from compress.files.hashing import digest_file

Curve: TypeAlias = tuple[tuple[int, float], ...]  # (step, mean total loss since the point before)

STATE = "state.json"


@dataclass(frozen=True)
class Spent:
    """What went into some weights. `recent` holds the losses since the curve's last point, one record a step."""

    steps: int = 0
    seconds: float = 0.0
    curve: Curve = ()
    recent: tuple[Mapping[str, float], ...] = ()


def write(folder: Path, spent: Spent, learnt: Mapping[str, torch.Tensor], settings: str) -> None:
    """Write a checkpoint; until its JSON is renamed, the one before stays whole. `settings` is the digest that `read` asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, counters = folder / "next.safetensors", folder / "next.json"
    name = _tensor_file(spent.steps)
    save_file(dict(learnt), tensors)
    facts = {
        "step": spent.steps,
        "seconds": spent.seconds,
        "curve": spent.curve,
        "recent": spent.recent,
        "settings": settings,
        "digest": digest_file(tensors),
    }
    counters.write_text(json.dumps(facts))
    _sync(tensors)
    _sync(counters)
    tensors.replace(folder / name)
    counters.replace(folder / STATE)
    for old in folder.glob(_tensor_file("*")):
        if old.name != name:
            old.unlink()


def read(folder: Path, settings: str | None) -> tuple[Spent, dict[str, torch.Tensor]]:
    """What `write` left in `folder`; with `settings` None, one of any settings, or of the zoo's older form, which had none.

    Raises:
        ValueError, KeyError, TypeError, OSError, SafetensorError: it is corrupt, or of other settings.
    """
    facts: dict[str, Any] = json.loads((folder / STATE).read_text())
    if settings is not None and facts["settings"] != settings:
        raise ValueError("it was made with other settings")
    file = folder / _tensor_file(int(facts["step"]))
    if (settings is not None or "digest" in facts) and digest_file(file) != facts["digest"]:
        raise ValueError(f"{file.name} is corrupt")
    curve = tuple((int(step), float(loss)) for step, loss in facts["curve"])
    recent = tuple(one if isinstance(one, dict) else {"loss": float(one)} for one in facts.get("recent", ()))
    return Spent(int(facts["step"]), float(facts["seconds"]), curve, recent), load_file(file)


def _tensor_file(step: int | str) -> str:
    return f"state-{step}.safetensors"


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
