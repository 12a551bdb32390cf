"""What a folder holds, read from JSON and file names alone: no weights, no model library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.artifact import (
    MANIFEST,
    SCHEMA,
    Artifact,
    Component,
    KeptAdapter,
    Provenance,
    Quantization,
    Setting,
    Settings,
    read_json,
)
from compress.catalogue import find_task, task_names
from compress.errors import ModelError, Problem, near
from compress.files.safetensors_headers import read_header
from compress.model.single_files import what_it_is
from compress.pipelines.index import INDEX, whole_of

# By method, the distribution that opens packed weights. A method that is not among them may be anything: its name, which a model's
# folder says, is never one to install.
OPENERS = {
    "auto-round": "auto-round",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}
# What transformers asks for beside an opener.
BESIDE = {"gptqmodel": ("accelerate", "optimum"), "bitsandbytes": ("accelerate",)}
ADAPTER = "adapter_config.json"
# What libraries call the weights of adapters.
ADAPTERS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
FUSE = "`pare run RECIPE --save FOLDER` without stages gives the model with the adapter in it, for every other command"
BITS = ("bits", "w_bit", "nbits", "num_bits")  # what configs call the width of a weight
WIDTH = re.compile(
    r"(\d+)_?weight", re.IGNORECASE
)  # in torchao's names of ways to pack: Int8WeightOnlyConfig, int4_weight_only


def describe(path: Path) -> Artifact:
    """Read what a folder holds.

    Raises:
        ModelError: `path` is no folder, no model of a task that pare knows, or its JSON does not read.
    """
    _be_folder(path)
    if (path / MANIFEST).is_file():
        return _from_manifest(path)
    found = [find_task(name).recognise(path) for name in task_names()]
    for answer in found:
        if isinstance(answer, Artifact):
            return _with_packing(answer)
    if part := whole_of(path):
        message = f"this folder is one part of a pipeline ({part[1]}), and no model by itself"
        raise ModelError(message, place=str(path), fix=f"give the pipeline's folder: {part[0]}")
    if problems := [answer for answer in found if isinstance(answer, Problem)]:
        message = "; ".join(dict.fromkeys(problem.message for problem in problems))
        raise ModelError(message, place=str(path), fix=problems[0].fix)
    if (path / ADAPTER).is_file() or any((path / file).is_file() for file in ADAPTERS):
        sentence = read_json(path / ADAPTER) if (path / ADAPTER).is_file() else {}
        base = sentence.get("base_model_name_or_path") or "a model that it does not name"
        message = f"this folder is an adapter for {base}, and no model by itself"
        raise ModelError(
            message, place=str(path), fix=f"in a recipe, write model: BASE and adapter: {path.name}; {FUSE}"
        )
    raise ModelError(
        "this folder is no model: it has neither model_index.json nor config.json",
        place=str(path),
        fix=_models_within(path) or "give a folder written by save_pretrained of diffusers or transformers",
    )


def _models_within(path: Path) -> str:
    """The models directly in a folder that is none itself, as a remedy; "" where there is none."""
    found = sorted(f.name for f in path.iterdir() if (f / INDEX).is_file() or (f / "config.json").is_file())
    return f"give {' or '.join(str(path / name) for name in found[:3])}, which it holds" if found else ""


def _be_folder(path: Path) -> None:
    """Raises a ModelError where there is no folder, and says what there is instead."""
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be read
        message = f"cannot be looked at: {error.strerror}"
        raise ModelError(message, place=str(path)[:200], fix="check the path, and who may read it") from error
    if file and is_adapter(path):
        message = "is an adapter, and no model by itself"
        raise ModelError(
            message, place=str(path), fix=f"in a recipe, write model: BASE and adapter: {path.name}; {FUSE}"
        )
    if file:
        message, fix = what_it_is(path)
        raise ModelError(message, place=str(path), fix=fix)
    if not folder:
        fix = "give a folder that diffusers or transformers saved"
        raise ModelError("no such model folder", place=str(path), fix=fix)


def is_adapter(file: Path) -> bool:
    """Whether a file holds pairs of low-rank matrices."""
    try:
        return any("lora" in name for name in read_header(file).tensors)
    except ModelError:
        return False


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """How the weights beside a `config.json` are packed; None where they are plain."""
    stored = config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    method = str(stored.get("quant_method") or "unnamed")
    bits = next((int(stored[name]) for name in BITS if isinstance(stored.get(name), int)), 0)
    bits = bits or (4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else 0)
    if not bits and method == "torchao" and (reported := WIDTH.search(json.dumps(stored.get("quant_type")))):
        bits = int(reported[1])
    return Quantization(method, bits or _grouped_bits(stored), OPENERS.get(method, ""))


def openers_of(packed: Quantization) -> tuple[str, ...]:
    """The distributions that stock libraries need to open packed weights; () where no method that is known packed them."""
    return (packed.library, *BESIDE.get(packed.library, ())) if packed.library else ()


def _grouped_bits(stored: Mapping[str, Any]) -> int:
    """The width of a weight where all groups of layers that compressed-tensors tells of have one; else 0."""
    found = {bits for bits, _ in _groups(stored)}
    return found.pop() if len(found) == 1 else 0


def bits_by_layer(config: Mapping[str, Any]) -> dict[str, int]:
    """The width of a weight of each layer that compressed-tensors names; {} where all layers have one."""
    stored = config.get("quantization_config")
    groups = list(_groups(stored)) if isinstance(stored, Mapping) else []
    return {name: bits for bits, targets in groups for name in targets} if len(groups) > 1 else {}


def _groups(stored: Mapping[str, Any]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The groups of layers that compressed-tensors tells of: the width of a weight, and what it calls the layers."""
    groups = stored.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
        if isinstance(bits, int):
            yield bits, tuple(map(str, group.get("targets") or ()))


def _with_packing(artifact: Artifact) -> Artifact:
    """The artifact, each torch component with what its own config says of packed weights."""
    parts = {name: _packed(artifact, name, part) for name, part in artifact.components.items()}
    return replace(artifact, components=parts)


def _packed(artifact: Artifact, name: str, part: Component) -> Component:
    file = artifact.folder(name) / "config.json"
    if part.format != "torch" or part.quantization or not file.is_file():
        return part
    return replace(part, quantization=quantization_of(read_json(file)))


def _from_manifest(path: Path) -> Artifact:
    data = read_json(path / MANIFEST)
    if data.get("schema") != SCHEMA:
        raise ModelError(
            f"artifact schema {data.get('schema')} is not the {SCHEMA} this pare reads",
            place=str(path / MANIFEST),
            fix="run the recipe again with this version of pare, or upgrade pare",
        )
    task = str(data.get("task"))
    if task not in task_names():
        fix = f"upgrade pare; {near(task, task_names())}"
        raise ModelError(f"its task {task} is none that this pare knows", place=str(path / MANIFEST), fix=fix)
    try:
        artifact = Artifact(
            path=path,
            task=task,
            components={name: _component(c) for name, c in data["components"].items()},
            settings=_settings(data["settings"]),
            lineage=tuple(Provenance(**p) for p in data["lineage"]),
            adapters={name: _kept(one) for name, one in data.get("adapters", {}).items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"does not read as pare writes it ({message})", place=str(path / MANIFEST), fix="run the recipe again"
        ) from error
    return _with_packing(artifact)


def _component(message: Mapping[str, Any]) -> Component:
    packed = message.get("quantization")
    part = Component(**{**message, "quantization": Quantization(**packed) if packed else None})
    _be_inside(part.path)
    return part


def _kept(message: Mapping[str, Any]) -> KeptAdapter:
    _be_inside(str(message["path"]))
    return KeptAdapter(str(message["path"]), float(message["scale"]), tuple(map(str, message["components"])))


def _be_inside(path: str) -> None:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{path} lies outside the folder")


def _settings(message: Mapping[str, Any]) -> Settings:
    levels = {level: tuple(Setting(**s) for s in message.get(level, ())) for level in ("graph", "hook")}
    return Settings(**{**message, **levels})
