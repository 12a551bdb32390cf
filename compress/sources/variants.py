"""Folders whose weights have the names of a variant alone (`model.fp16.safetensors`), as hubs keep them beside plain ones: seen through links
that have the plain names, under which every library looks for them. Nothing is copied, and the folder stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from compress.artifact import MANIFEST, STEMS, Artifact, read_json
from compress.files.hashing import digest_json, list_files
from compress.files.views import view
from compress.model.resave_advice import variant_of
from compress.model.weight_files import loaded_files
from compress.pipelines.index import INDEX, LEFT_OUT, library_of

ENDING = ".safetensors"


def variants(artifact: Artifact) -> dict[str, str]:
    """By component, the one variant that its safetensors are, where it has none with plain names; {} where any has several, for then nobody
    says which is meant."""
    found: dict[str, str] = {}
    for name, part in artifact.components.items():
        if part.format != "torch" or name in LEFT_OUT or (artifact.path / MANIFEST).is_file():
            continue
        if _plain(artifact, name):
            continue
        stem = _stem(artifact, name)
        names = {file.name for file in artifact.folder(name).glob(f"{stem}*{ENDING}")}
        kinds = {_variant(one, stem) for one in names} - {""}
        if len(kinds) > 1:
            return {}
        if kinds:
            found[name] = kinds.pop()
    return found


def opened_of(names: Iterable[str], artifact: Artifact) -> Iterator[str]:
    """Of a repository's files, the safetensors that a library opens: of each component those with plain names, or where there are none
    all of its variants; of engines all that lie in their folders."""
    known = [name for name in names if name.endswith(ENDING)]
    for component, part in artifact.components.items():
        if component in LEFT_OUT:
            continue
        inside = [name for name in known if PurePosixPath(name).parent == PurePosixPath(part.path)]
        if part.format != "torch":
            yield from inside
            continue
        stem = _stem(artifact, component)
        own = [name for name in inside if PurePosixPath(name).name.startswith(stem)]
        whole = [name for name in own if PurePosixPath(name).name == f"{stem}{ENDING}"]
        plain = [name for name in own if not _variant(PurePosixPath(name).name, stem)]
        yield from whole or plain or own


def view_of(artifact: Artifact, which: Mapping[str, str], key: str, root: Path | None) -> Path:
    """A folder in which links under plain names stand for an artifact's files.

    Args:
        which: as `variants` has it. key: stands for the folder's content.
        root: of the cache in which it is made; None: the system's temporary folder, in one of this user's.
    """
    named = {artifact.folder(name): (variant, _stem(artifact, name)) for name, variant in which.items()}

    def fill(made: Path) -> None:
        for file in list_files(artifact.path):
            source, target = artifact.path / file, made / file
            target.parent.mkdir(parents=True, exist_ok=True)
            variant, stem = named.get(source.parent, ("", ""))
            if variant and source.name.startswith(stem):
                _stand_in(source, target.parent, variant)
            else:
                target.symlink_to(source.resolve())

    return view(root, digest_json([key, str(artifact.path.resolve()), dict(which)]), fill)


def _stand_in(source: Path, folder: Path, variant: str) -> None:
    """Under its plain name: a link to weights of the variant, or an index of them that names the links. Others are left out."""
    plain = source.name.replace(f".{variant}", "")
    if plain == source.name:
        return
    if source.suffix == ".json":
        index = read_json(source)
        shards = {key: str(file).replace(f".{variant}", "") for key, file in index.get("weight_map", {}).items()}
        (folder / plain).write_text(json.dumps({**index, "weight_map": shards}, indent=2) + "\n")
    elif source.suffix == ENDING:
        (folder / plain).symlink_to(source.resolve())


def _plain(artifact: Artifact, name: str) -> bool:
    """Whether a component has weights with plain names, or an index of them."""
    folder, stem = artifact.folder(name), _stem(artifact, name)
    return (folder / f"{stem}{ENDING}.index.json").is_file() or bool(loaded_files(artifact, name))


def _stem(artifact: Artifact, name: str) -> str:
    library = library_of(artifact.path, name) if (artifact.path / INDEX).is_file() else "transformers"
    return STEMS.get(library, "model")


def _variant(file: str, stem: str) -> str:
    """The variant in a file's name, as libraries name it, and as diffusers once did its shards: model-00001-of-00002.fp16.safetensors."""
    shard, _, rest = file.removeprefix(f"{stem}-").partition(".")
    old = rest.removesuffix(ENDING) if "-of-" in shard and rest.endswith(ENDING) else ""
    return variant_of(file, stem) or old
