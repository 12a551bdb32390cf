"""The lines that save a model anew, for weights under names or in formats that pare does not open: with the variant they are, and in the
number type they have, which the libraries would else widen."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from compress.artifact import Artifact
from compress.errors import ModelError
from compress.files.safetensors_headers import read_header
from compress.pipelines.index import INDEX

# From the widest on: what safetensors call a number type, what pickled weights call it, and what torch does.
TYPES = (
    ("F32", b"FloatStorage", "float32"),
    ("BF16", b"BFloat16Storage", "bfloat16"),
    ("F16", b"HalfStorage", "float16"),
)
FIRST = 2**20  # bytes of a file pickled as torch did of old: its names come first


def shown(path: Path) -> str:
    """A path as it is named from where the user is: relative below that, else whole."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return str(whole.relative_to(here) if here in whole.parents else whole)


def variant_of(file: str, stem: str) -> str:
    """fp16 of model.fp16.safetensors and model.fp16-00001-of-00002.safetensors; "" of plain names."""
    head, *more = file.removeprefix(f"{stem}.").split(".")
    return head.partition("-")[0] if file.startswith(f"{stem}.") and more and head not in ("safetensors", "bin") else ""


def saved_anew(artifact: Artifact, files: Mapping[str, tuple[Path, ...]], variant: str = "") -> str:
    """The lines of Python that save a model under plain names as safetensors.

    Args:
        files: of each component, those that hold its weights.
        variant: which of the files are read; "" for those with plain names.
    """
    pipeline = (artifact.path / INDEX).is_file()
    kind = "DiffusionPipeline" if pipeline else "AutoModelForCausalLM"
    dtype = _dtype({name: found for name, inside in files.items() if (found := widest(inside))})
    folder = shown(artifact.path)
    given = [f'"{folder}"', *([f'variant="{variant}"'] if variant else [])]
    given += [f"dtype={dtype}"] if dtype else []
    imports = ("import torch; " if dtype else "") + f"from {'diffusers' if pipeline else 'transformers'} import {kind}"
    copied = "" if pipeline else "; copy the tokenizer's files into it"
    return (
        f'save it anew: {imports}; {kind}.from_pretrained({", ".join(given)}).save_pretrained("{folder}-plain"){copied}'
    )


def _dtype(found: Mapping[str, str]) -> str:
    """The argument that keeps each component's number type; "" where none is known."""
    kinds = sorted(set(found.values()), key=lambda kind: -list(found.values()).count(kind))
    if len(kinds) < 2:
        return f"torch.{kinds[0]}" if kinds else ""
    others = [f'"{name}": torch.{kind}' for name, kind in found.items() if kind != kinds[0]]
    return "{" + ", ".join([f'"default": torch.{kinds[0]}', *others]) + "}"


def widest(files: Iterable[Path]) -> str:
    """The widest of the number types in which weights are stored; "" where that does not read."""
    found = {kind for file in files for kind in _types(file)}
    return next((kind for *_, kind in TYPES if kind in found), "")


def _types(file: Path) -> Iterator[str]:
    try:
        if file.suffix == ".safetensors":
            held = {stored.dtype for stored in read_header(file).tensors.values()}
            yield from (kind for name, _, kind in TYPES if name in held)
        else:
            pickled = pickled_names(file)
            yield from (kind for _, name, kind in TYPES if name in pickled)
    except (ModelError, OSError, zipfile.BadZipFile):  # loading it tells
        return


def pickled_names(file: Path) -> bytes:
    """The names in a file that torch pickled, which are looked for and never run."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            return stream.read(FIRST)
    with zipfile.ZipFile(file) as packed:
        name = next((n for n in packed.namelist() if n.endswith("data.pkl")), "")
        return packed.read(name) if name else b""
