"""How a recipe names a model, its own as well as one that a stage is given: in the zoo, in a folder, of the hub, in one file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from compress.endpoints.address import COMPARED, NO_MODEL, is_address, plain
from compress.errors import Problem
from compress.files.user_paths import BESIDE, file_and_config
from compress.recipe.validate import given
from compress.recipe.yaml_tree import Node

MODELS = "zoo://NAME, a folder as ./folder, or hf://org/name@<40-hex commit>"
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # what names a file too
_FOLDER = re.compile(r"(\.{0,2}/|~/|\.{1,2}$)")
_HUB = re.compile(r"hf://[\w.-]+/[\w.-]+@[0-9a-f]{40}")


def is_model_name(text: str) -> bool:
    """Whether a text is meant to name a model, and no step."""
    return "://" in text or bool(_FOLDER.match(text))


def model_problems(node: Node, model: str, key: str = "model") -> Iterator[Problem]:
    """What is wrong with what stands after `key`."""
    file, config = file_and_config(model, Path(node.at.rsplit(":", 2)[0]).parent)
    if config:
        if not _FOLDER.match(file):
            fix = f"./{file.strip('/') or 'x.safetensors'}{BESIDE}{config}"
            yield Problem(node.at, f"{key} {given(file)} is no file, as what stands before `{BESIDE}` is", fix)
        yield from model_problems(node, config, f"{key}: config")
    elif model.startswith("hf://"):
        if not _HUB.fullmatch(model):
            fix = "write hf://org/name@<40-hex commit>; `pare check --pin` finds the commit"
            yield Problem(node.at, f"{key} {model} is not pinned to a commit, so a run could not be repeated", fix)
    elif model.startswith("zoo://"):
        if not SAFE.fullmatch(model.removeprefix("zoo://")):
            yield Problem(node.at, f"{key} {given(model)} is no name in the zoo", "zoo://NAME; `pare list` shows them")
    elif is_address(model):
        yield Problem(node.at, f"{key} {given(plain(model))} {NO_MODEL}", COMPARED)
    elif not _FOLDER.match(model):
        name = model if model.strip("/") and "://" not in model and model.isprintable() else "NAME"
        fix = f"a folder is ./{name}, a model of the hub hf://{name}@<40-hex commit>, one of the zoo zoo://NAME"
        yield Problem(node.at, f"{key} {given(model)} is neither a zoo model, a folder nor a hub model", fix)
