"""An artifact is an immutable folder: a model in the layout its own library reads, and `pare.json` beside it.

`pare.json` says what a plain model folder cannot: the format of every component, the arguments the model is meant to be
called with, and the lineage of stages that made it. A folder without one is a source model, described from its own config.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compress.errors import ModelError
from compress.hashing import list_files

Task = Literal["text_to_image", "text_generation"]
# "fastest" stands in plans alone: whatever format the choice will fall on.
Format = Literal["torch", "openvino", "onnx", "tensorrt", "gguf", "compiled", "fastest"]
# The distribution that runs a component of each format.
RUNS_ON: Mapping[Format, str] = {
    "torch": "torch",
    "openvino": "openvino",
    "onnx": "onnxruntime",
    "tensorrt": "tensorrt-rtx-cu13",
    "gguf": "llama-cpp-python",
    "compiled": "torch",
}
MANIFEST = "pare.json"
SCHEMA = 1
LANGUAGE_MODEL = "model"
DENOISERS = ("unet", "transformer")
# Words in diffusers' class names: of pipelines that are given more than text, and of those that give other than pictures.
OTHER_INPUTS = ("Img2Img", "Inpaint", "Control", "Upscale", "Pix2Pix", "Edit", "Variation", "SuperResolution", "Fill")
OTHER_OUTPUTS = ("Video", "Audio", "Animate", "Motion", "Temporal", "3D", "1D")
NO_TEXT = ("UNet2DModel", "DiTTransformer2DModel")  # denoisers that no text reaches
# Encoders that continue a text only where their config says `is_decoder`.
BERTS = (
    "bert",
    "bert-generation",
    "camembert",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
)
ENCODERS = (
    *BERTS,
    "big_bird",
    "data2vec-text",
    "electra",
    "ernie",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
BOTH_WAYS = ("XLNetLMHeadModel", "XLMWithLMHeadModel", "FlaubertWithLMHeadModel")  # read on both sides of a token


@dataclass(frozen=True)
class Component:
    """A part of a model that can be replaced by itself. `path` is relative to the artifact ("" is the root)."""

    format: Format
    path: str
    kind: str  # the class that its own config names, e.g. UNet2DConditionModel


@dataclass(frozen=True)
class Settings:
    """How to run the model. `call` holds arguments of the pipeline or of `generate`; it goes with any engine."""

    call: Mapping[str, Any] = field(default_factory=dict)
    needs_pare: bool = False


@dataclass(frozen=True)
class Provenance:
    """One stage that made an artifact: everything here is known before it runs, so equal work gives equal bytes."""

    stage: str
    version: int
    params: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class Artifact:
    path: Path
    task: Task
    components: Mapping[str, Component]
    settings: Settings = field(default_factory=Settings)
    lineage: tuple[Provenance, ...] = ()
    digest: str = ""
    planned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # configs of what is still to be made

    @property
    def main(self) -> str:
        """The component that stages work on by default: the denoiser, or the language model."""
        return next((name for name in (*DENOISERS, LANGUAGE_MODEL) if name in self.components), "")

    @property
    def working(self) -> tuple[str, ...]:
        """The components that paint or write: the main one, VAE and text encoders, but none that judges or reads pictures."""
        beside = (n for n in self.components if n == "vae" or n.startswith("text_encoder"))
        return tuple(n for n in (self.main, *beside) if n)

    def folder(self, component: str) -> Path:
        return self.path / self.components[component].path

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's own config: as it will be, where a stage still to run changes it, else as its folder holds it.

        Raises:
            ModelError: the folder has none that reads.
        """
        if component in self.planned:
            return self.planned[component]
        found: Mapping[str, Any] = read_json(self.folder(component) / "config.json")
        return found

    def replacing(self, formats: Mapping[str, Format]) -> Artifact:
        """The same artifact with some components in another format."""
        parts = {n: replace(c, format=formats.get(n, c.format)) for n, c in self.components.items()}
        return replace(self, components=parts)

    def calling(self, **call: Any) -> Artifact:
        """The same artifact, called with more arguments."""
        return replace(self, settings=replace(self.settings, call={**self.settings.call, **call}))


def describe(path: Path) -> Artifact:
    """Read what a folder holds, from JSON alone: no weights, no model library.

    Raises:
        ModelError: `path` is no folder, no model, or its JSON does not read.
    """
    if not path.is_dir():
        raise ModelError(
            "no such model folder", place=str(path), fix="give a folder that diffusers or transformers saved"
        )
    if (path / MANIFEST).is_file():
        return _from_manifest(path)
    if (path / "model_index.json").is_file():
        return _pipeline(path)
    if (path / "config.json").is_file():
        return _language_model(path)
    raise ModelError(
        "this folder is no model: it has neither model_index.json nor config.json",
        place=str(path),
        fix="give a folder written by save_pretrained of diffusers or transformers",
    )


def read_json(path: Path) -> Any:
    """Parse a JSON file, or say which file does not parse.

    Raises:
        ModelError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"does not read as JSON: {error}", place=str(path), fix="save the model again") from error


def _pipeline(path: Path) -> Artifact:
    index = read_json(path / "model_index.json")
    kind, parts = str(index.get("_class_name", "")), _pipeline_components(path, index)
    found = Artifact(path, "text_to_image", parts)
    denoiser = parts[found.main].kind if found.main else ""
    other = any(word in kind for word in (*OTHER_INPUTS, *OTHER_OUTPUTS))
    other |= any(word in denoiser for word in (*OTHER_OUTPUTS, *NO_TEXT))
    if other or not found.main:
        why = "takes or gives something else" if other else f"has no {' or '.join(DENOISERS)} of its own"
        raise ModelError(
            f"pare paints pictures from text alone, and {kind or 'this pipeline'} {why}",
            place=str(path),
            fix="give a text-to-image pipeline, such as StableDiffusionPipeline or FluxPipeline",
        )
    return found


def _pipeline_components(path: Path, index: Mapping[str, Any]) -> dict[str, Component]:
    parts = {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            continue
        if (path / name / "config.json").is_file():  # schedulers and tokenizers carry other config files
            parts[name] = Component("torch", name, str(entry[1]))
    if not parts:
        raise ModelError(
            "model_index.json names no component with weights", place=str(path), fix="save the pipeline again"
        )
    return parts


def _language_model(path: Path) -> Artifact:
    config = read_json(path / "config.json")
    kind = (config.get("architectures") or [""])[0]
    encoder = kind in BOTH_WAYS or (config.get("model_type") in ENCODERS and not config.get("is_decoder"))
    if encoder or not kind.endswith(("ForCausalLM", "LMHeadModel")):
        what = kind or "of an unnamed class"
        why = f"{what}, which reads a text whole and does not continue it" if encoder else what
        raise ModelError(
            f"pare reads text-generation and text-to-image models, and this is {why}",
            place=str(path),
            fix="give a causal language model or a diffusers pipeline folder",
        )
    return Artifact(path, "text_generation", {LANGUAGE_MODEL: Component("torch", "", kind)})


def _from_manifest(path: Path) -> Artifact:
    data = read_json(path / MANIFEST)
    if data.get("schema") != SCHEMA:
        raise ModelError(
            f"artifact schema {data.get('schema')} is not the {SCHEMA} this pare reads",
            place=str(path / MANIFEST),
            fix="run the recipe again with this version of pare, or upgrade pare",
        )
    return Artifact(
        path=path,
        task=data["task"],
        components={name: Component(**c) for name, c in data["components"].items()},
        settings=Settings(**data["settings"]),
        lineage=tuple(Provenance(**p) for p in data["lineage"]),
    )


def write_manifest(artifact: Artifact) -> None:
    """Write `pare.json` into the artifact's folder. Holds no time and no path, so equal work gives equal bytes."""
    body = {
        "schema": SCHEMA,
        "task": artifact.task,
        "components": {name: vars(c) for name, c in sorted(artifact.components.items())},
        "settings": {"call": dict(artifact.settings.call), "needs_pare": artifact.settings.needs_pare},
        "lineage": [vars(p) for p in artifact.lineage],
    }
    (artifact.path / MANIFEST).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")


def derive(artifact: Artifact, out: Path, *, without: tuple[str, ...] = (), link: bool = True) -> Artifact:
    """Fill `out` with the files of `artifact`, minus those in `without`, and return the artifact there.

    Args:
        without: paths relative to the artifact; a folder's name leaves out all below it, a file's name just that file.
        link: hard-link where the file system can (only right between cache entries, which nobody edits), else copy.
    """
    for relative in list_files(
        artifact.path
    ):  # no hidden file: an entry's own record must not be linked and overwritten
        source = artifact.path / relative
        gone = any(relative == Path(w) or Path(w) in relative.parents for w in without)
        if gone or relative.name == MANIFEST:
            continue
        target = out / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (link and _hard_link(source, target)):
            shutil.copyfile(source, target)
    return replace(artifact, path=out, digest="")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of a torch component that hold its weights, relative names sorted."""
    kinds = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
    return tuple(sorted({f for kind in kinds for f in folder.glob(kind)}))


def rewritten(artifact: Artifact, components: tuple[str, ...]) -> tuple[str, ...]:
    """The files that saving these components again writes, for `derive` to leave out: weights and config."""
    files = [f for name in components for f in weight_files(artifact.folder(name))]
    files += [artifact.folder(name) / "config.json" for name in components]
    if artifact.task == "text_generation":
        files.append(artifact.path / "generation_config.json")
    return tuple(str(f.relative_to(artifact.path)) for f in files)


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
