"""What a single file of weights is, read from its name, its neighbours and the names of its tensors, and what to give in its place: pare
opens folders."""

from __future__ import annotations

import zipfile
from pathlib import Path

from compress.errors import ModelError
from compress.files.safetensors_headers import read_header
from compress.model.resave_advice import pickled_names, shown, widest
from compress.pipelines.index import INDEX

CONFIG = "config.json"
# Checkpoints of a whole pipeline: a name of their tensors, and the class that opens them. The first that fits is meant.
WHOLE = (
    ("conditioner.embedders.1.", "StableDiffusionXLPipeline"),
    ("model.diffusion_model.joint_blocks.", "StableDiffusion3Pipeline"),
    ("model.diffusion_model.double_blocks.", "FluxPipeline"),
    ("model.diffusion_model.output_blocks.", "StableDiffusionPipeline"),
)
LANGUAGE = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
PART = ("double_blocks.", "joint_blocks.", "transformer_blocks.", "down_blocks.", "decoder.conv_in.", "input_blocks.")
ELSE = "give the folder that save_pretrained of diffusers or transformers writes"


def instead(file: Path) -> str:
    """What to give in place of a file."""
    folder = _folder_of(file)
    if file.suffix == ".gguf":
        made = shown(folder) if folder and any(folder.glob("*.safetensors")) else "the model that it was made from"
        return f"pare starts from the torch model, and build.gguf makes such a file of it: give {made}"
    if folder:
        return f"it is part of the model in {shown(folder)}: give that"
    names = _names(file)
    for name, kind in WHOLE:
        if name in names:
            return _as_folder(file, kind)
    if any(name in names for name in LANGUAGE):
        message = (
            "it holds a language model's weights alone: fetch config.json and the tokenizer's files of the same model"
        )
        return f"{message} into a folder with it, name it model.safetensors there, and give that folder"
    if any(name in names for name in PART):
        return (
            "it holds one part of a pipeline: give the folder of the whole, with model_index.json and this part in it"
        )
    return ELSE


def _folder_of(file: Path) -> Path | None:
    """The model's folder that a file lies in; None where it lies by itself."""
    if (file.parent.parent / INDEX).is_file() and (file.parent / CONFIG).is_file():
        return file.parent.parent
    return file.parent if any((file.parent / name).is_file() for name in (INDEX, CONFIG)) else None


def _as_folder(file: Path, kind: str) -> str:
    """The lines that save a checkpoint of a whole pipeline as a folder, in the number type that it has."""
    place, dtype = shown(file), widest([file])
    given, imports = (f", dtype=torch.{dtype}", "import torch; ") if dtype else ("", "")
    line = f'{kind}.from_single_file("{place}"{given}).save_pretrained("{place.removesuffix(file.suffix)}")'
    return f"save it as a folder and give that: {imports}from diffusers import {kind}; {line}"


def _names(file: Path) -> str:
    """The names of a file's tensors, or where it is pickled all text in it that may be one; "" where it does not read."""
    try:
        if file.suffix == ".safetensors":
            return "\n".join(read_header(file).tensors)
        return pickled_names(file).decode("latin-1")
    except (ModelError, OSError, zipfile.BadZipFile):
        return ""
