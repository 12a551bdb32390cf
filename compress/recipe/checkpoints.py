"""What a recipe says of a model that is a checkpoint in one file: `model: {file: ./x.safetensors, config: ./base}`, or `./x.safetensors::./base`,
which stands wherever a model is named."""

from __future__ import annotations

from pydantic import Field

from compress.errors import Problem
from compress.files.user_paths import BESIDE
from compress.params import Params
from compress.recipe.validate import check_params
from compress.recipe.yaml_tree import Node


class CheckpointSpec(Params):
    """A checkpoint in one file, as A1111 and ComfyUI keep them, and where its configs and tokenizers are from."""

    file: str = Field(min_length=1, description="its .safetensors file, as ./FILE")
    config: str = Field(
        min_length=1,
        description="a diffusers folder of its family, as ./folder, or hf://org/name@<40-hex commit>; components that the file does not "
        "hold are from there too",
    )


def as_reference(node: Node, problems: list[Problem]) -> Node | None:
    """What stands after `model:` as one text; None of a mapping with mistakes, which are added to `problems`."""
    if not isinstance(node.value, dict):
        return node
    spec = check_params(CheckpointSpec, node, "model", problems)
    return Node(f"{spec.file}{BESIDE}{spec.config}", node.at, node.key) if spec else None
