"""Packed weights that only a GPU computes with, or only one number type goes with: read from configs and headers, before anything is
packed or opened."""

from __future__ import annotations

from collections.abc import Iterator

from compress.artifact import Artifact
from compress.catalogue import Stage
from compress.errors import Problem
from compress.files.safetensors_headers import read_header
from compress.machine import gpus
from compress.machine.devices import CPU, Opening
from compress.model.weight_files import loaded_files
from compress.quantization.reach import model_library

ANY_GPU, INT4, FLOAT8 = 1, 80, 89  # the least compute capability, as a number
TYPES = ("F64", "F32", "BF16", "F16")  # the widest first
HALF = {"BF16": "bfloat16", "F16": "float16"}


def level(library: str, method: str, how: str) -> int:
    """The least compute capability of a GPU that packed weights are computed on; 0 where a processor does too.

    Args:
        library: of the component, diffusers or transformers. how: the packer's own name of the way, such as Int4WeightOnlyConfig.
    """
    if method == "bitsandbytes":
        return ANY_GPU if library == "diffusers" else 0
    if method != "torchao":
        return 0
    return INT4 if how.startswith("Int4WeightOnly") else FLOAT8 if how.startswith("Float8Dynamic") else 0


def in_own_number_type(artifact: Artifact) -> bool:
    """Whether some of its weights are packed for one number type and open in no other: torchao's."""
    return any(part.quantization and part.quantization.method == "torchao" for part in artifact.components.values())


def why_not_there(least: int, device: str) -> str:
    """Why weights that need such a GPU are computed with nowhere on a device, or ""."""
    if not least:
        return ""
    since = f" from SM{least} on" if least > ANY_GPU else ""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return f"it takes an NVIDIA GPU{since}, and the device is {device}"
    found = gpus.gpus_here()[int(number or 0) :]
    if found and int(found[0].target.removeprefix("SM")) < least:
        return f"it takes an NVIDIA GPU{since}, and {device} is {found[0].name}, {found[0].target}"
    return ""


def way_of(artifact: Artifact, name: str) -> str:
    """What torchao calls the way in which a component on disk is packed; "" where nothing says it."""
    stored = artifact.known_config(name).get("quantization_config")
    kinds = (stored.get("quant_type") or {}).get("default") if isinstance(stored, dict) else None
    return str(kinds.get("_type", "")) if isinstance(kinds, dict) else ""


def packed_place_problems(artifact: Artifact, opening: Opening, place: str) -> Iterator[Problem]:
    """Which packed parts of a model cannot be opened on the device of a run."""
    for name in artifact.packed(artifact.components):
        part = artifact.components[name]
        if part.format != "torch" or part.quantization is None:
            continue
        least = _needed(artifact, name)
        if why := why_not_there(least, opening.device):
            message = f"the weights of `{name}` are {part.quantization.method}'s, as {model_library(artifact, name)} opens them: {why}"
            yield Problem(place, message, "device: cuda, on a machine that has one, or give the unquantized checkpoint")


def device_for(artifact: Artifact) -> str:
    """Where an artifact is opened to be looked at: on the processor, unless some of it runs on a GPU alone and there is one."""
    on_gpu = any(_needed(artifact, name) for name in artifact.packed(artifact.components))
    return "cuda:0" if on_gpu and gpus.gpu_here() else CPU


def engine_beside(stage: Stage, touched: tuple[str, ...], artifact: Artifact) -> str:
    """Why a stage cannot make an engine beside what torchao packed for another number type than engines take, or ""."""
    parts = artifact.components
    if not any(parts[n].format == "torch" and stage.leaves("torch") != "torch" for n in touched if n in parts):
        return ""
    kind = HALF.get(stored_type(artifact), "")
    for name in artifact.packed(parts) if kind else ():
        packed = parts[name].quantization
        if name not in touched and parts[name].format == "torch" and packed and packed.method == "torchao":
            return (
                f"`{name}` is packed by torchao for {kind}, and beside an engine all else is float32: "
                f"put {stage.name} before quantize.torchao"
            )
    return ""


def stored_type(artifact: Artifact, name: str = "") -> str:
    """The widest number type of a component's weights, the main one's by default, as safetensors spells it; "" where its weights are not here yet."""
    name = name or artifact.main
    found = {one.dtype for file in loaded_files(artifact, name) for one in read_header(file).tensors.values()}
    return next((kind for kind in TYPES if kind in found), "")


def needs_bfloat16(artifact: Artifact, mode: str) -> str:
    """Why torchao's int4, and its float8 with a scale for each row, do not go with a model, or ""."""
    kind = stored_type(artifact)
    if kind in ("", "BF16"):
        return ""
    return f"{mode} computes in bfloat16, and the model is stored in {HALF.get(kind, 'float32')}: save it in bfloat16"


def abilities() -> str:
    """Which of torchao's ways this machine has, in a line."""
    gpu = gpus.gpu_here()
    found = int(gpu.target.removeprefix("SM")) if gpu else 0
    there = ["int8_weights", "int8_dynamic", *["int4_weights"] * (found >= INT4), *["float8"] * (found >= FLOAT8)]
    return f"packs {', '.join(there)} here{'' if gpu else ': the others take an NVIDIA GPU'}"


def _needed(artifact: Artifact, name: str) -> int:
    packed = artifact.components[name].quantization
    if packed is None or artifact.components[name].format != "torch":
        return 0
    way = way_of(artifact, name) if packed.method == "torchao" else ""
    return level(model_library(artifact, name), packed.method, way)
