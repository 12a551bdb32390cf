"""Torch weights packed into few bits by a library as it loads them, and saved so that stock `from_pretrained` finds them packed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.engines.torch import runtime
from compress.errors import StageFailed
from compress.files.safetensors_headers import read_header
from compress.machine.devices import Opening
from compress.quantization.reach import model_library, same_layer

BITSANDBYTES = frozenset({"Linear4bit", "Linear8bitLt"})  # classes of its modules
PARTS = "tensor_data_names"  # what torchao's kinds of tensors have


def pack(
    artifact: Artifact, name: str, folder: Path, config: Any, left: Iterable[str], opening: Opening
) -> tuple[str, ...]:
    """Load a component packed, and save it.

    Args:
        folder: where it is saved; it holds neither weights nor config.json yet.
        config: of the quantization, as the component's own library spells it.
        left: the layers that stay as they are.

    Returns:
        The layers that are packed, by name.

    Raises:
        StageFailed: nothing was packed, or something that was to stay as it is, or it was not saved as safetensors.
        ModelError: it does not load.
    """
    part, before = artifact.components[name], artifact.folder(name)
    opening = opening.of(opening.dtype or opened_dtype(artifact, name))
    if name == LANGUAGE_MODEL:
        module = runtime.load_language_model(before, part.kind, opening, quantization_config=config)
    else:
        library = model_library(artifact, name)
        module = runtime.load_component(before, library, part.kind, opening, quantization_config=config)
    found = packed_layers(module)
    if not found or (astray := sorted(one for one in found if any(same_layer(one, other) for other in left))):
        message = f"`{name}`: the library packed {', '.join(astray[:3]) if found else 'no layer'}"
        raise StageFailed(message, place=str(before), fix="please report this with the recipe")
    runtime.save_component(module, before, folder)
    _say_dtype(folder, module)
    if pickled := sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind)):
        raise StageFailed(f"`{name}` was saved as {pickled[0]}, which is pickled", fix="upgrade the libraries")
    for file in folder.glob("*.safetensors"):
        order_header(file)
    return found


def packed_layers(module: torch.nn.Module) -> tuple[str, ...]:
    """The layers whose weights bitsandbytes or torchao holds in few bits."""
    return tuple(
        name
        for name, part in module.named_modules()
        if type(part).__name__ in BITSANDBYTES or hasattr(type(getattr(part, "weight", None)), PARTS)
    )


def opened_dtype(artifact: Artifact, name: str) -> str | None:
    """The number type in which a component is opened: what the denoiser is stored in, for a pipeline's parts are all of one; None of a
    language model, which keeps its own."""
    if artifact.writes_text:
        return None
    from compress.opening.pipeline_parts import natural_dtype

    return str(natural_dtype(artifact)).removeprefix("torch.")


def order_header(file: Path) -> None:
    """Sort the metadata of a safetensors file: its library writes that in an order of chance, and equal work is to give equal
    bytes. No tensor moves.

    Raises:
        ModelError: it does not read.
    """
    read_header(file)
    with file.open("r+b") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        head = json.loads(stream.read(length))
        if "__metadata__" not in head:
            return
        metadata = dict(sorted(head.pop("__metadata__").items()))
        body = json.dumps({"__metadata__": metadata, **head}, separators=(",", ":"), ensure_ascii=False).encode()
        if len(body) <= length:  # else it is spelt otherwise than safetensors spells it
            stream.seek(8)
            stream.write(body.ljust(length))


def _say_dtype(folder: Path, module: torch.nn.Module) -> None:
    """Let a config of transformers name the number type of all that is not packed: else it is guessed from whatever tensor comes first, and
    that may be a scale."""
    config = read_json(folder / "config.json")
    if "_class_name" not in config:  # of diffusers, which reads no such field
        config.pop("torch_dtype", None)
        config["dtype"] = str(next(p.dtype for p in module.parameters() if p.is_floating_point())).removeprefix(
            "torch."
        )
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
