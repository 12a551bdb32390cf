"""Whether a folder holds the weights that its library will look for, read from file names and an index alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.artifact import LANGUAGE_MODEL, STEMS, Artifact, loaded_weights, read_json
from compress.errors import ModelError, Problem
from compress.model.describing import ADAPTERS, FUSE
from compress.model.resave_advice import saved_anew, variant_of
from compress.pipelines.index import INDEX, LEFT_OUT, library_of

PICKLED = {"diffusers": "diffusion_pytorch_model", "transformers": "pytorch_model"}  # where torch pickled them
OTHERS = (
    "*.bin",
    "*.ckpt",
    "*.pt",
    "*.pth",
    "*.msgpack",
    "*.h5",
)  # what no from_pretrained reads by these names, or at all


def weight_problems(artifact: Artifact, place: str) -> Iterator[Problem]:
    """What torch components lack of their weights (all, a shard, the plain name, a format without code in it), and adapters
    beside them, which would be left out, or loaded by some libraries and not by others."""
    for file in ADAPTERS:
        if (artifact.path / file).is_file():
            message = f"{file} is an adapter beside the model, and pare works on the model alone"
            yield Problem(
                place,
                message,
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
    return loaded_weights(artifact.folder(name), (STEMS.get(_library(artifact, name), "model"),))


def _problems(artifact: Artifact, name: str, place: str) -> Iterator[Problem]:
    folder, stem = artifact.folder(name), STEMS.get(_library(artifact, name), "model")
    index = folder / f"{stem}.safetensors.index.json"
    if (folder / f"{stem}.safetensors").is_file():
        return
    if index.is_file():
        yield from _lacking(index, name, place)
        return
    where = f"`{name}`" if name != LANGUAGE_MODEL else "the model"
    pickled = "which can run code when they are read: pare reads safetensors"
    if found := _readable(artifact, name):
        variant = variant_of(found[0].name, _stem(artifact, name, found[0]))
        several = sorted({variant_of(file.name, stem) for file in folder.glob(f"{stem}*.safetensors")} - {""})
        message = (
            f"{where} has weights as variant {variant} alone ({found[0].name}), and is loaded from {stem}.safetensors"
        )
        if len(several) > 1:
            message = f"{where} has weights as the variants {', '.join(several)}, and nothing says which is meant"
        if found[0].suffix != ".safetensors":
            message = f"{where} has pickled weights alone ({found[0].name}), {pickled}"
        yield Problem(place, message, saved_anew(artifact, _all_readable(artifact, variant), variant))
    elif others := sorted(f.name for kind in OTHERS for f in folder.glob(kind)):
        message = f"{where} has pickled weights alone ({others[0]}), {pickled}"
        yield Problem(place, message, "fetch its safetensors, or save them with the program that wrote this file")
    elif other := sorted(f.name for f in folder.glob("*.safetensors")):
        message = f"{where} has no {stem}.safetensors and no index of shards, only {', '.join(other[:3])}"
        yield Problem(place, message, f"fetch {index.name} too, or save the model again with save_pretrained")
    else:
        message = f"{where} has no weights: there is no {stem}.safetensors in {folder}"
        yield Problem(place, message, "fetch them, or save the model again with save_pretrained")


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
        message = f"`{name}` lacks {len(gone)} of the {len(shards)} files that {index.name} names, such as {gone[0]}"
        yield Problem(place, message, "fetch them, or save the model again with save_pretrained")


def _library(artifact: Artifact, name: str) -> str:
    """The library that loads a component."""
    return library_of(artifact.path, name) if (artifact.path / INDEX).is_file() else "transformers"


def _stem(artifact: Artifact, name: str, file: Path) -> str:
    """What a component's library calls its weights, in a file of this kind."""
    stems = STEMS if file.suffix == ".safetensors" else PICKLED
    return stems.get(_library(artifact, name), stems["transformers"])


def _all_readable(artifact: Artifact, variant: str) -> dict[str, tuple[Path, ...]]:
    """Of each component, the files that its library reads where it is asked for a variant."""
    parts = [name for name, part in artifact.components.items() if part.format == "torch" and name not in LEFT_OUT]
    return {name: _readable(artifact, name, variant) for name in parts}


def _readable(artifact: Artifact, name: str, variant: str = "") -> tuple[Path, ...]:
    """The files that a component's library reads: of the variant, else the plain ones, else those of the first variant there
    is; safetensors, or where there are none, pickled ones."""
    folder = artifact.folder(name)
    for kind in ("safetensors", "bin"):
        stem = _stem(artifact, name, Path(f"x.{kind}"))
        found: dict[str, list[Path]] = {}
        for file in sorted({*folder.glob(f"{stem}.*{kind}"), *folder.glob(f"{stem}-*.{kind}")}):
            found.setdefault(variant_of(file.name, stem), []).append(file)
        if kind == "safetensors" and not variant and "" in found and not loaded_files(artifact, name):
            found.pop("")  # shards without their index
        if found:
            return tuple(found.get(variant) or found.get("") or found[min(found)])
    return ()
