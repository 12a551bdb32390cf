"""What `model_index.json` says of a diffusers pipeline: its components, and what it takes and gives beside text and images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.artifact import DENOISERS, Component, read_json
from compress.errors import ModelError

INDEX = "model_index.json"
# Words in diffusers' class names: of pipelines that are given more than text, and of those that give other than images.
OTHER_INPUTS = (
    "Img2Img",
    "Inpaint",
    "Control",
    "Upscale",
    "Pix2Pix",
    "Edit",
    "Variation",
    "SuperResolution",
    "Fill",
    "Kontext",
)
OTHER_OUTPUTS = ("Video", "Audio", "Animate", "Motion", "Temporal", "3D", "1D")
# Parts that judge or mark images rather than generate them: they would change what is measured, and are never opened.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
NO_TEXT = ("UNet2DModel", "DiTTransformer2DModel")  # denoisers that no text reaches


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's class and its components with weights."""

    kind: str
    components: Mapping[str, Component]

    @property
    def denoiser(self) -> str:
        """The class of the denoiser; "" of a pipeline that has none of its own."""
        return next((self.components[name].kind for name in DENOISERS if name in self.components), "")

    @property
    def generates(self) -> bool:
        """Whether it has a denoiser that text reaches, and gives images."""
        other = any(word in self.kind or word in self.denoiser for word in OTHER_OUTPUTS)
        return bool(self.denoiser) and not other and not any(word in self.denoiser for word in NO_TEXT)

    @property
    def takes(self) -> tuple[str, ...]:
        """The words of `OTHER_INPUTS` in its class's name: what it is given beside text."""
        return tuple(word for word in OTHER_INPUTS if word in self.kind)


def read_pipeline(path: Path) -> Pipeline | None:
    """What a folder's `model_index.json` says; None where there is none.

    Raises:
        ModelError: it does not read, or names no component with weights.
    """
    if not (path / INDEX).is_file():
        return None
    index: Mapping[str, Any] = read_json(path / INDEX)
    parts = {
        name: Component("torch", name, kind)
        for name, (_, kind) in named_parts(index).items()
        if (path / name / "config.json").is_file()  # schedulers and tokenizers carry other config files
    }
    if not parts:
        raise ModelError(f"{INDEX} names no component with weights", place=str(path), fix="save the pipeline again")
    return Pipeline(str(index.get("_class_name", "")), parts)


def named_parts(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts that an index names: library and class by name, of those that are there."""
    pairs = ((n, e) for n, e in index.items() if not n.startswith("_") and isinstance(e, list) and len(e) == 2)
    return {name: (str(entry[0]), str(entry[1])) for name, entry in pairs if entry[1] is not None}


def class_of(path: Path) -> str:
    """The class that a folder's index says its pipeline is of; "" where there is no index, or it names none."""
    index = path / INDEX
    return str(read_json(index).get("_class_name", "")) if index.is_file() else ""


def name_part(path: Path, part: str, kind: str) -> None:
    """Say in a pipeline's index which class of diffusers a part is now. A link to another folder's index is not written through."""
    file = path / INDEX
    index = {**read_json(file), part: ["diffusers", kind]}
    file.unlink()
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def whole_of(path: Path) -> tuple[Path, str] | None:
    """The folder of the pipeline that a folder is a part of, and the part's class; None of a folder that is part of none."""
    whole, name = path.parent if path.name else path.resolve().parent, path.name or path.resolve().name
    try:
        found = named_parts(read_json(whole / INDEX)) if (whole / INDEX).is_file() else {}
    except ModelError:
        return None
    return (whole, found[name][1]) if name in found else None


def library_of(path: Path, component: str) -> str:
    """The library that a pipeline's component comes from: diffusers or transformers."""
    return str(read_json(path / INDEX)[component][0])
