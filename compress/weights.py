"""Whether a folder holds the weights that its library will look for, told from file names and an index alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.describing import ADAPTERS, FUSE
from compress.errors import ModelError, Problem
from compress.pipelines import INDEX, LEFT_OUT, library_of

# What the libraries call a component's weights: `NAME.safetensors`, or `NAME.safetensors.index.json` and the files that it names.
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack", "*.h5")


def weight_problems(artifact: Artifact, place: str) -> Iterator[Problem]:
    """What torch components lack of their weights (all, a shard, the plain name, a format without code in it), and adapters
    beside them, which would be left out, or loaded by some libraries and not by others."""
    for file in ADAPTERS:
        if (artifact.path / file).is_file():
            said = f"{file} is an adapter beside the model, and pare works on the model alone"
            yield Problem(
                place,
                said,
                f"move it into a folder of its own; to have it in the model, name that in a recipe's adapter: ({FUSE})",
            )
    for name, part in artifact.components.items():
        if part.format == "torch" and name not in LEFT_OUT:
            yield from _problems(artifact, name, place)


def loaded_files(artifact: Artifact, name: str) -> tuple[Path, ...]:
    """The files that a component's library reads its weights from: the plain one, or the shards that the index names.

    Raises:
        ModelError: the index does not read.
    """
    folder, stem = artifact.folder(name), STEMS.get(_library(artifact, name), "model")
    index = folder / f"{stem}.safetensors.index.json"
    if (folder / f"{stem}.safetensors").is_file() or not index.is_file():
        return tuple(f for f in (folder / f"{stem}.safetensors",) if f.is_file())
    named = read_json(index).get("weight_map")
    shards = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    return tuple(folder / shard for shard in shards if (folder / shard).is_file())


def _problems(artifact: Artifact, name: str, place: str) -> Iterator[Problem]:
    folder, stem = artifact.folder(name), STEMS.get(_library(artifact, name), "model")
    index = folder / f"{stem}.safetensors.index.json"
    if (folder / f"{stem}.safetensors").is_file():
        return
    if index.is_file():
        yield from _lacking(index, name, place)
        return
    where = f"`{name}`" if name != LANGUAGE_MODEL else "the model"
    if variants := sorted(f.name for f in folder.glob(f"{stem}.*.safetensors*")):
        variant = variants[0].removeprefix(f"{stem}.").partition(".")[0].partition("-")[0]
        said = f"{where} has weights as variant {variant} alone ({variants[0]}), and is loaded from {stem}.safetensors"
        yield Problem(place, said, _saved_anew(artifact, variant=variant))
    elif pickled := sorted(f.name for kind in PICKLED for f in folder.glob(kind)):
        said = f"{where} has pickled weights alone ({pickled[0]}), which can run code when they are read: pare reads safetensors"
        yield Problem(place, said, _saved_anew(artifact))
    elif other := sorted(f.name for f in folder.glob("*.safetensors")):
        said = f"{where} has no {stem}.safetensors and no index of shards, only {', '.join(other[:3])}"
        yield Problem(place, said, f"fetch {index.name} too, or save the model again with save_pretrained")
    else:
        said = f"{where} has no weights: there is no {stem}.safetensors in {folder}"
        yield Problem(place, said, "fetch them, or save the model again with save_pretrained")


def _lacking(index: Path, name: str, place: str) -> Iterator[Problem]:
    """Shards that an index names and that are not there."""
    try:
        named = read_json(index).get("weight_map")
    except ModelError as error:
        yield from error.problems
        return
    if not isinstance(named, dict) or not named:
        yield Problem(place, f"{index} names no files", "fetch it again, or save the model again with save_pretrained")
        return
    shards = sorted(set(map(str, named.values())))
    if gone := [shard for shard in shards if not (index.parent / shard).is_file()]:
        said = f"`{name}` lacks {len(gone)} of the {len(shards)} files that {index.name} names, such as {gone[0]}"
        yield Problem(place, said, "fetch them, or save the model again with save_pretrained")


def _library(artifact: Artifact, name: str) -> str:
    """The library that loads a component."""
    return library_of(artifact.path, name) if (artifact.path / INDEX).is_file() else "transformers"


def _saved_anew(artifact: Artifact, **options: str) -> str:
    """The line that saves a model under plain names as safetensors."""
    pipeline = (artifact.path / INDEX).is_file()
    kind = "DiffusionPipeline" if pipeline else "AutoModelForCausalLM"
    library = "diffusers" if pipeline else "transformers"
    said = "".join(f", {name}={value!r}" for name, value in options.items())
    folder = artifact.path.name
    line = f'{kind}.from_pretrained("{folder}"{said}).save_pretrained("{folder}-plain")'
    copied = "" if pipeline else "; copy the tokenizer's files beside it"
    return f"save it anew: from {library} import {kind}; {line}{copied}"
