"""How many weights a component has, or will have behind the stages that are still to run; from headers, indexes and configs alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from compress.artifact import CHOSEN, Artifact, loaded_weights, read_json
from compress.catalogue import find_engine
from compress.errors import PareError
from compress.files.safetensors_headers import read_header
from compress.quantization.linears import Linear, linears
from compress.sources.models import parameter_count

NUMBERS = {"float64": 8, "float32": 4}  # bytes of a number, by what configs call its type; of any other, HALF
STORED = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # by what headers call it
HALF = 2
MIXED = 8  # bits at most, where layers have several widths
GROUP, PER_GROUP = 64, 3  # weights that share a scale, and the bytes of that and of a zero point


def parameters(artifact: Artifact, component: str) -> int:
    """How many there are, or will be once the stages of the plan have cut them; as many as now where a config does not tell; 0 where
    nothing does."""
    try:
        there = parameter_count(artifact.folder(component)) or _indexed(artifact, component)
        if component not in artifact.planned:
            return there
        part = replace(artifact.components[component], format="torch", quantization=None)
        plain = replace(artifact, components={component: part})
        before, after = (_weights(linears(one, component)) for one in (replace(plain, planned={}), plain))
    except PareError:
        return 0
    return there * after // before if before and after else there


def stored_bytes(artifact: Artifact, component: str) -> int:
    """What they take in the number type that they are stored in, whatever an earlier stage makes of it."""
    return parameters(artifact, component) * number_bytes(artifact, component)


def number_bytes(artifact: Artifact, component: str) -> int:
    """Bytes of the widest number among a component's weights."""
    try:
        files = loaded_weights(artifact.folder(component))
        kinds = {one.dtype for file in files for one in read_header(file).tensors.values()}
    except PareError:
        return NUMBERS["float32"]
    if found := [STORED[kind] for kind in kinds if kind in STORED]:
        return max(found)
    config = artifact.known_config(component)
    return NUMBERS.get(str(config.get("dtype") or config.get("torch_dtype") or "float32"), HALF)


def held_bytes(artifact: Artifact, component: str) -> int:
    """What a component's weights take on disk as they are, or will be: packed where it is quantized, in float32 where an engine that
    does not keep the number type holds them."""
    part, count = artifact.components[component], parameters(artifact, component)
    wide = (
        number_bytes(artifact, component)
        if part.format != CHOSEN and find_engine(part.format).keeps_type
        else NUMBERS["float32"]
    )
    if part.quantization is None:
        return wide * count
    narrow = min(count, _reached(artifact, component)) if part.format == "torch" else count
    scaled = narrow * (part.quantization.bits or MIXED) // 8 + narrow // GROUP * PER_GROUP
    return scaled + wide * (count - narrow)


def opened_bytes(artifact: Artifact, component: str) -> int:
    """What it takes of memory where it is opened as it is stored: whatever is packed has its weights unpacked beside them, and what an
    engine compiles lies beside the file."""
    part, held = artifact.components[component], held_bytes(artifact, component)
    if part.format != "torch":
        return 2 * held
    return held + (stored_bytes(artifact, component) if part.quantization else 0)


def _reached(artifact: Artifact, component: str) -> int:
    """How many weights lie in layers that quantizers pack by default."""
    part = replace(artifact.components[component], quantization=None)
    try:
        return _weights(
            one for one in linears(replace(artifact, components={component: part}), component) if not one.head
        )
    except PareError:
        return 0


def _weights(layers: Iterable[Linear]) -> int:
    return sum(one.weights for one in layers if not one.tied)


def _indexed(artifact: Artifact, component: str) -> int:
    """Parameters by the index of shards that are not here yet, as of a model of the hub before its weights are fetched."""
    sizes = [_total(file) for file in artifact.folder(component).glob("*.safetensors.index.json")]
    return max(sizes, default=0) // number_bytes(artifact, component)


def _total(index: Path) -> int:
    """The bytes that an index says all shards hold; 0 where it does not."""
    metadata = read_json(index).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else 0
    return int(size) if isinstance(size, (int, float)) else 0
