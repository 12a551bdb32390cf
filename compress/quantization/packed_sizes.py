"""What the weights of a torch component take once some of its layers are packed, and what they take now: bytes of tensors, from headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from compress.artifact import Artifact, read_json
from compress.files.safetensors_headers import Stored, read_header
from compress.model.weight_files import loaded_files
from compress.quantization.automatic import Sizes
from compress.quantization.linears import Linear
from compress.quantization.sensitivity import Layer

WEIGHT = ".weight"
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}  # else 1
# What vLLM and SGLang load as one layer, which has one width: the last words of their names, and what they are called together.
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
EXPERTS = "experts"
Packed = Callable[[Linear, int, int], int]  # bytes of a layer in so many bits, its numbers having so many bytes now


def packed_sizes(
    artifact: Artifact,
    name: str,
    layers: Sequence[Linear],
    widths: Sequence[int],
    packed: Packed,
    together: Mapping[str, tuple[str, ...]] | None = None,
    *,
    unpacked: bool = False,
) -> Sizes | None:
    """What these layers can take, each in these widths; None where headers do not tell: weights that are still to be fetched, or that an
    earlier stage will cut.

    Args:
        together: names of layers that must be alike, by what they are called together; None: each for itself.
        unpacked: whether a layer may stay as it is too, in as many bits as its numbers have.
    """
    tensors = stored_tensors(artifact, name)
    found = {one.name: tensor for one in layers if (tensor := tensor_of(one.name, tensors))}
    if not layers or len(found) < len(layers) or to_be_cut(artifact, name):
        return None
    whole = weight_bytes(artifact, name)
    fixed = whole - sum(stored_bytes(tensor) for tensor in found.values())
    each = {
        one.name: {bits: packed(one, bits, item) for bits in (*widths, *((8 * item,) if unpacked else ()))}
        for one in layers
        for item in (_item(found[one.name]),)
    }
    groups = together or {one.name: (one.name,) for one in layers}
    sums = {key: {bits: sum(each[n][bits] for n in names) for bits in each[names[0]]} for key, names in groups.items()}
    return Sizes(sums, fixed, whole)


def loaded_together(layers: Iterable[Linear]) -> dict[str, tuple[str, ...]]:
    """The layers that servers load as one, by what those call it: queries, keys and values of a block, its two gates, its experts."""
    found: dict[str, list[str]] = {}
    for one in layers:
        *front, last = one.name.split(".")
        front = front[: front.index(EXPERTS)] if one.expert else front
        found.setdefault(".".join([*front, EXPERTS if one.expert else FUSED.get(last, last)]), []).append(one.name)
    return {key: tuple(names) for key, names in found.items()}


def costs_of(layers: Mapping[str, Layer], together: Mapping[str, tuple[str, ...]]) -> dict[str, dict[int, float]]:
    """What layers that must be alike cost together, by width, those left out of which one was not measured."""
    known = {key: [layers[n].cost for n in names] for key, names in together.items() if all(n in layers for n in names)}
    return {key: {bits: sum(one[bits] for one in costs) for bits in costs[0]} for key, costs in known.items()}


def stored_tensors(artifact: Artifact, name: str) -> dict[str, Stored]:
    """The tensors that a component's library loads."""
    return {n: t for file in loaded_files(artifact, name) for n, t in read_header(file).tensors.items()}


def weight_bytes(artifact: Artifact, name: str) -> int:
    """Bytes of all tensors that a component's library loads."""
    return sum(map(stored_bytes, stored_tensors(artifact, name).values()))


def tensor_of(name: str, tensors: Mapping[str, Stored]) -> Stored | None:
    """The weight of a layer, whose name in a checkpoint may lack the front."""
    words = name.split(".")
    ways = (".".join(words[cut:]) for cut in range(len(words)))
    return next((tensors[f"{way}{WEIGHT}"] for way in ways if f"{way}{WEIGHT}" in tensors), None)


def to_be_cut(artifact: Artifact, name: str) -> bool:
    """Whether an earlier stage of the plan will leave other shapes than there are now."""
    config = artifact.folder(name) / "config.json"
    return name in artifact.planned and artifact.planned[name] != (read_json(config) if config.is_file() else {})


def _item(stored: Stored) -> int:
    return BYTES.get(stored.dtype, 1)


def stored_bytes(stored: Stored) -> int:
    """Bytes of a tensor."""
    return stored.count * _item(stored)
