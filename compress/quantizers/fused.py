"""Layers that a library quantized in parts, put together again as the model's class has them (Phi-3's gate and up projections).

Both parts read the same inputs, so the order of their columns and their groups are the same, and outputs are quantized each by itself:
packed side by side they are the very codes that the whole layer would have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# By the last word of a layer's name, what GPTQModel splits it into, in the order of its outputs.
SPLIT: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj")}
OUTPUTS = {"qweight": 1, "qzeros": 1, "scales": 1, "weight": 0, "bias": 0}  # by tensor, the axis that outputs lie along
INDEX = "model.safetensors.index.json"


def parts_of(name: str) -> tuple[str, ...]:
    """The modules that GPTQModel makes of a layer."""
    front, _, last = name.rpartition(".")
    return tuple(f"{front}.{part}" for part in SPLIT[last]) if last in SPLIT else (name,)


def put_together(folder: Path, names: Iterable[str]) -> None:
    """Rewrite a saved checkpoint's files, the parts of these layers joined.

    Raises:
        RuntimeError: the parts of one do not have the same inputs in the same order.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    split = {name: parts for name in names if len(parts := parts_of(name)) > 1}
    if not split:
        return
    where: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            where |= dict.fromkeys(opened.keys(), file)
    gone: set[str] = set()
    added: dict[Path, dict[str, torch.Tensor]] = {file: {} for file in where.values()}
    for name, parts in split.items():
        for tensor in (*OUTPUTS, "g_idx"):
            theirs = [f"{part}.{tensor}" for part in parts]
            if theirs[0] in where:
                joined = _joined(name, tensor, [_read(where[one], one) for one in theirs])
                added[where[theirs[0]]][f"{name}.{tensor}"] = joined
                gone.update(theirs)
    for file, more in added.items():
        kept = {one: value for one, value in load_file(file).items() if one not in gone}
        save_file({**kept, **more}, file, metadata={"format": "pt"})
    _set_index(folder)


def _joined(name: str, tensor: str, parts: list[torch.Tensor]) -> torch.Tensor:
    import torch

    if tensor in OUTPUTS:
        return torch.cat(parts, OUTPUTS[tensor]).contiguous()
    if any(not torch.equal(parts[0], other) for other in parts[1:]):
        raise RuntimeError(f"the parts of {name} have their columns in another order each")
    return parts[0]


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        found: torch.Tensor = opened.get_tensor(name)
    return found


def _set_index(folder: Path) -> None:
    """Have the index of shards, where there is one, name what they hold now."""
    from safetensors import safe_open

    if not (folder / INDEX).is_file():
        return
    held: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            held |= dict.fromkeys(opened.keys(), file.name)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "weight_map": held}, indent=2, sort_keys=True) + "\n")
