"""What a single file of weights is, read from its name, its neighbours and the names of its tensors, and what to give in its place, or
beside it: a checkpoint is opened with a folder of configs, and all else that pare opens is a folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

from compress.errors import ModelError
from compress.files.safetensors_headers import read_header
from compress.files.user_paths import BESIDE
from compress.model.original_families import PREFIX, family_of, repository_of
from compress.model.original_layouts import DENOISERS, layouts_of
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
# Files that are no model by themselves: what shows it, and what they are. The first that fits is meant.
PARTS = (
    (("control_model.", "input_hint_block.", "controlnet_cond_embedding.", "controlnet_blocks."), "a ControlNet"),
    (("RRDB_trunk.", "body.0.rdb1.", "model.1.sub.0.", "conv_first.weight"), "an upscaler"),
    (("first_stage_model.", "decoder.conv_in.", "decoder.up.0."), "a VAE"),
    (("text_model.encoder.", "resblocks.0.ln_1.", "encoder.block.0.layer.0."), "a text encoder"),
)
PART_FIX = "it holds one part of a pipeline: give the folder of the whole, with model_index.json and this part in it"
ELSE = "give the folder that save_pretrained of diffusers or transformers writes"


def what_it_is(file: Path) -> tuple[str, str]:
    """What a file is that was named as a model, and what to give instead, or beside it."""
    one = "is one file, and pare opens folders"
    if file.suffix != ".safetensors" or _folder_of(file):
        return one, instead(file)
    try:
        tensors = read_header(file).tensors
    except ModelError:
        return one, instead(file)
    if any(layout.component in DENOISERS for layout in layouts_of(tensors)) or any(n in _names(file) for n, _ in WHOLE):
        family = family_of(tensors)
        known = f" of the family {family}" if family else ""
        return f"is a checkpoint in one file{known}, which holds no configs and no tokenizers", configs_of(file, family)
    for begins, kind in PARTS:
        if any(name.startswith((*begins, *(PREFIX + one for one in begins))) for name in tensors):
            return f"is {kind}, and no model by itself", PART_FIX
    return one, instead(file)


def configs_of(file: Path, family: str) -> str:
    """How the configs are named that a checkpoint in one file needs."""
    repository = repository_of(family)
    hub = (
        f" (for this family diffusers takes hf://{repository}@<commit>; `pare check --pin` finds the commit)"
        if repository
        else ""
    )
    place = shown(file)
    return f"name a diffusers folder of its family behind it, {place if '/' in place else f'./{place}'}{BESIDE}./FOLDER{hub}"


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
        return PART_FIX
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
