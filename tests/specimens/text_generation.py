"""A writer, and texts: the zoo's for training would have to be read out of every library's source."""

from __future__ import annotations

from pathlib import Path

from tests.specimens import Specimen
from tests.tiny import tiny_llama


def train(folder: Path) -> str:
    (folder / "train.txt").write_text("\n\n".join(f"The {i}th value of the sorted array." for i in range(40)))
    return str(folder / "train.txt")


SPECIMEN = Specimen(
    model=lambda folder: tiny_llama(folder / "llama"),
    calibration=lambda folder: "zoo://docstrings/validation",
    train=train,
    quantized={"ignore": ["*.k_proj", "*.v_proj"]},  # 16 wide, and auto-round takes multiples of 32
)
