"""A pipeline that follows instructions, and edits drawn by chance."""

from __future__ import annotations

from functools import partial

from tests.editors import edits, tiny_editor
from tests.specimens import Specimen

SPECIMEN = Specimen(
    model=partial(tiny_editor, kind="StableDiffusionInstructPix2PixPipeline"),
    calibration=lambda folder: str(edits(folder / "calibration")),
    train=lambda folder: str(edits(folder / "train", shade=1)),
    built={"components": ["text_encoder"]},  # the smallest: tests/pipeline/test_editor_table.py builds them all
)
