"""Instruction editing: a stock diffusers pipeline that is given an image, and an instruction in the prompt's place."""

from __future__ import annotations

from compress.artifact import Artifact
from compress.machine.devices import Opening
from compress.opening.image_to_image import ImageToImage
from compress.opening.models import Call
from compress.pipelines.image_sizes import exactly


def open_model(artifact: Artifact, opening: Opening) -> InstructionEditing:
    return InstructionEditing(artifact, opening)


class InstructionEditing(ImageToImage):
    """A pipeline ready to change images as instructions say."""

    def sized(self, size: tuple[int, int]) -> Call:
        return {**super().sized(size), **exactly(self.takes, *size)}
