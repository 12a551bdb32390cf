"""A generator, and the zoo's captions."""

from __future__ import annotations

from tests.specimens import Specimen
from tests.tiny import tiny_diffusion

SPECIMEN = Specimen(
    model=tiny_diffusion,
    calibration=lambda folder: "zoo://digits/validation",
    train=lambda folder: "zoo://digits/train",
    built={"components": ["text_encoder"]},  # the smallest: tests/pipeline builds them all
)
