"""torch: the component as its own library saved it. What every other engine is compared with."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import loaded_weights
from compress.engines import Engine

NO_WEIGHTS = ("training_args.bin",)


def weights(folder: Path) -> tuple[Path, ...]:
    """Safetensors, of one variant, or else what torch itself pickled: beside safetensors that is not read.

    Raises:
        ModelError: an index of shards does not read.
    """
    found = loaded_weights(folder) or tuple(sorted(folder.glob("*.safetensors")))
    return found or tuple(f for f in sorted(folder.glob("*.bin")) if f.name not in NO_WEIGHTS)


ENGINE = Engine(
    format="torch",
    title="torch",
    distribution="torch",
    files=("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json"),
    devices=frozenset({"cpu", "cuda", "mps"}),
    weights=weights,
    keeps_type=True,
    torch_memory=True,
)
