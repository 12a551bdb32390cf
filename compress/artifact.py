"""An artifact is an immutable folder: a model in the layout its own library reads, and `pare.json` beside it.

`pare.json` says what a plain model folder cannot: the format of every component, the arguments the model is meant to be
called with, and the lineage of stages that made it. A folder without one is a source model, described from its own config.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compress.errors import ModelError
from compress.files.hashing import list_files
from compress.files.lfs_pointers import refuse_pointer

Format = str  # the name of an engine's record, or CHOSEN
CHOSEN = "fastest"  # stands in plans alone: whatever format the choice will fall on
MANIFEST = "pare.json"
SCHEMA = 1
LANGUAGE_MODEL = "model"
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls an adapter's weights
DENOISERS = ("unet", "transformer")
# What the libraries call a component's weights: `NAME.safetensors`, or `NAME.safetensors.index.json` and the files that it names.
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
# How files end that hold weights, for any library: torch, TensorFlow, Flax, ONNX, OpenVINO, llama.cpp, Core ML, Rust, Paddle.
HOLD_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ggml", ".pb", ".tflite"),
    *(".npz", ".ot", ".pdparams", ".mlmodel", "model.xml"),
)
SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler/scheduler_config.json"  # no component: it has no weights


@dataclass(frozen=True)
class Quantization:
    """How a component's weights are packed into few bits, so that only one library opens them and nothing else can change them."""

    method: str
    bits: int
    library: str  # the distribution that opens it


@dataclass(frozen=True)
class Component:
    """A part of a model that can be replaced by itself.

    path: relative to the artifact; "" is the root.
    kind: the class that its own config names, e.g. UNet2DConditionModel.
    module: the dotted part of a checkpoint that several components share; "" where it has one of its own.
    quantization: of packed weights, torch's or an engine's, also while they are only planned.
    """

    format: Format
    path: str
    kind: str
    module: str = ""
    quantization: Quantization | None = None

    def to_json(self) -> dict[str, Any]:
        """As a manifest has it: what is not stated is the default."""
        found: dict[str, Any] = {"format": self.format, "path": self.path, "kind": self.kind}
        found |= {"module": self.module} if self.module else {}
        return found | ({"quantization": vars(self.quantization)} if self.quantization else {})


@dataclass(frozen=True)
class Setting:
    """One way to run a component otherwise, beyond the arguments of a call: a cache hooked into its blocks, an attention backend."""

    name: str
    component: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How to run the model, by level.

    call: arguments of the pipeline or of `generate`; they go with any engine.
    graph: what must be set before a graph is taken, and is built into it.
    hook: what is hooked into torch modules, and so goes with no engine.
    lean: whether a pipeline's call is the lean one, which generates the very same images.
    """

    call: Mapping[str, Any] = field(default_factory=dict)
    needs_pare: bool = False
    graph: tuple[Setting, ...] = ()
    hook: tuple[Setting, ...] = ()
    lean: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a manifest has it: what is not stated is the default."""
        found: dict[str, Any] = {"call": dict(self.call), "needs_pare": self.needs_pare}
        found |= {"lean": True} if self.lean else {}
        levels = {"graph": self.graph, "hook": self.hook}
        return found | {level: [vars(s) for s in given] for level, given in levels.items() if given}


@dataclass(frozen=True)
class KeptAdapter:
    """A LoRA that goes with a model without being in its weights, in the folder that diffusers' `load_lora_weights` takes.

    path: relative to the artifact. scale: what its update is multiplied by, beside its own alpha and rank. components: those that it changes.
    """

    path: str
    scale: float
    components: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {"path": self.path, "scale": self.scale, "components": list(self.components)}


@dataclass(frozen=True)
class Provenance:
    """One stage that made an artifact: everything here is known before it runs, so equal work gives equal bytes.

    inputs: by role, the keys of the models of their own that it was given, such as its teacher.
    """

    stage: str
    version: int
    params: Mapping[str, Any]
    key: str
    inputs: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a manifest has it: what is not stated is the default."""
        found = {"stage": self.stage, "version": self.version, "params": self.params, "key": self.key}
        return found | ({"inputs": dict(self.inputs)} if self.inputs else {})


@dataclass(frozen=True)
class Artifact:
    path: Path
    task: str
    components: Mapping[str, Component]
    settings: Settings = field(default_factory=Settings)
    lineage: tuple[Provenance, ...] = ()
    digest: str = ""
    planned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # configs of what is still to be made
    adapters: Mapping[str, KeptAdapter] = field(default_factory=dict)  # that it is opened with, by name

    @property
    def main(self) -> str:
        """The component that stages work on by default: the denoiser, or the language model."""
        return next((name for name in (*DENOISERS, LANGUAGE_MODEL) if name in self.components), "")

    @property
    def working(self) -> tuple[str, ...]:
        """The components that generate or write: the main one, VAE and text encoders, but none that judges or reads images."""
        beside = (n for n in self.components if n == "vae" or n.startswith("text_encoder"))
        return tuple(n for n in (self.main, *beside) if n)

    def folder(self, component: str) -> Path:
        return self.path / self.components[component].path

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's own config, or the scheduler's: as it will be, where a stage still to run changes it, else as its folder
        holds it.

        Raises:
            ModelError: the folder has none that reads.
        """
        if component in self.planned:
            return self.planned[component]
        file = self.path / SCHEDULER_CONFIG if component == SCHEDULER else self.folder(component) / "config.json"
        found: Mapping[str, Any] = read_json(file)
        return found

    @property
    def writes_text(self) -> bool:
        """Whether it is a language model, and no pipeline of several components."""
        return self.main == LANGUAGE_MODEL

    def packed(self, components: Iterable[str]) -> tuple[str, ...]:
        """Those of the components whose weights are quantized and packed."""
        return tuple(n for n in components if n in self.components and self.components[n].quantization)

    def choose(self, named: tuple[str, ...] | Literal["all"], takes: Callable[[Format], bool]) -> tuple[str, ...]:
        """The components that are meant: those named, or `all` working ones of a format that is taken, or, if none is named, the
        main one."""
        if named == "all":
            return tuple(name for name in self.working if takes(self.components[name].format))
        return named or (self.main,)

    def known_config(self, component: str) -> Mapping[str, Any]:
        """As `config`, or nothing where there is none to read yet."""
        there = component in self.planned or (self.folder(component) / "config.json").is_file()
        return self.config(component) if there else {}

    def replacing(self, formats: Mapping[str, Format]) -> Artifact:
        """The same artifact with some components in another format."""
        parts = {n: replace(c, format=formats.get(n, c.format)) for n, c in self.components.items()}
        return replace(self, components=parts)

    def becoming(self, kinds: Mapping[str, str]) -> Artifact:
        """The same artifact with some components of another class."""
        parts = {n: replace(c, kind=kinds.get(n, c.kind)) for n, c in self.components.items()}
        return replace(self, components=parts)

    def packing(self, how: Mapping[str, Quantization]) -> Artifact:
        """The same artifact, the weights of some components packed."""
        parts = {n: replace(c, quantization=how.get(n, c.quantization)) for n, c in self.components.items()}
        return replace(self, components=parts)

    def calling(self, **call: object) -> Artifact:
        """The same artifact, called with more arguments."""
        return replace(self, settings=replace(self.settings, call={**self.settings.call, **call}))

    def calling_lean(self, lean: bool = True) -> Artifact:
        """The same artifact, called the lean way or not, which only pare can."""
        return replace(self, settings=replace(self.settings, lean=lean, needs_pare=lean or self.settings.needs_pare))


def adapted(artifact: Artifact, components: Iterable[str]) -> str:
    """The first of the adapters beside a model that changes one of these components; "" where none does."""
    wanted = set(components)
    return next((name for name, one in artifact.adapters.items() if wanted & set(one.components)), "")


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object, as all files of a model do, or say which file does not.

    Raises:
        ModelError: the file is missing, is no JSON, or holds something else.
    """
    refuse_pointer(path, ModelError)
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"does not read as JSON: {error}", place=str(path), fix="save the model again") from error
    if not isinstance(found, dict):
        raise ModelError("holds no JSON object", place=str(path), fix="save the model again")
    return found


def write_manifest(artifact: Artifact) -> None:
    """Write `pare.json` into the artifact's folder. Holds no time and no path, so equal work gives equal bytes."""
    body = {
        "schema": SCHEMA,
        "task": artifact.task,
        "components": {name: c.to_json() for name, c in sorted(artifact.components.items())},
        "settings": artifact.settings.to_json(),
        "lineage": [p.to_json() for p in artifact.lineage],
    }
    if artifact.adapters:
        body["adapters"] = {name: one.to_json() for name, one in sorted(artifact.adapters.items())}
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


def loaded_weights(folder: Path, stems: Iterable[str] = STEMS.values()) -> tuple[Path, ...]:
    """The safetensors that a library reads of a component's folder, and no other variant beside them: the plain one, or the shards that
    the index names; () where there is neither.

    Args:
        stems: what the library may call them.

    Raises:
        ModelError: the index does not read.
    """
    for stem in stems:
        plain, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if plain.is_file():
            return (plain,)
        if index.is_file():
            named = read_json(index).get("weight_map")
            shards = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
            return tuple(folder / shard for shard in shards if (folder / shard).is_file())
    return ()


def holding(artifact: Artifact, components: Iterable[str]) -> tuple[Path, ...]:
    """Every file that holds weights of these components, whatever library reads it: their folders', and those that belong to no
    component, as copies for other libraries (onnx/model.onnx, tf_model.h5) and of the whole model (v1-5-pruned.safetensors) do."""
    wanted = set(components)
    others = {artifact.folder(name) for name in artifact.components if name not in wanted}
    others -= {artifact.folder(name) for name in wanted}
    others |= {artifact.path / one.path for one in artifact.adapters.values()}
    found = (artifact.path / relative for relative in list_files(artifact.path))
    return tuple(file for file in found if _holds_weights(file.name) and not others.intersection(file.parents))


def _holds_weights(file: str) -> bool:
    name = file.removesuffix(".index.json")
    return (name.endswith(HOLD_WEIGHTS) and "tokenizer" not in name) or ".onnx_data" in name or ".onnx.data" in name


def rewritten(artifact: Artifact, components: tuple[str, ...]) -> tuple[str, ...]:
    """The files that saving these components again writes or makes untrue, for `derive` to leave out: weights and config."""
    files = list(holding(artifact, components))
    files += [artifact.folder(name) / "config.json" for name in components]
    if LANGUAGE_MODEL in components:
        files.append(artifact.folder(LANGUAGE_MODEL) / "generation_config.json")
    return tuple(str(f.relative_to(artifact.path)) for f in files)


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
