"""How wide the weights of a component are: what a quantizer reached, what it passed over, and whether it made anything smaller."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from compress.artifact import Artifact, Quantization
from compress.catalogue import find_engine

BITS = {
    "int8": 8,
    "int8_hybrid": 8,
    "int8_weights": 8,
    "int8_dynamic": 8,
    "float8": 8,
    "int4_weights": 4,
}  # by a precision's name
WIDE = ("float64", "float32", "float16", "bfloat16")
PASSED_OVER = 0.1  # share of wide weights from which a user must hear of them


def packing(names: tuple[str, ...], format: str, precision: str) -> dict[str, Quantization]:
    """How engines of a precision hold the weights of these components; {} where they stay as wide as they were."""
    bits = BITS.get(precision)
    return dict.fromkeys(names, Quantization(precision, bits, find_engine(format).distribution)) if bits else {}


def stored(artifact: Artifact, name: str) -> Mapping[str, int]:
    """How many of a component's weights each number type holds; {} where the engine does not tell."""
    module = f"compress.engines.{artifact.components[name].format}.stored"
    if find_spec(module) is None:
        return {}
    found: Mapping[str, int] = importlib.import_module(module).stored(artifact.folder(name))
    return found


def shares(artifact: Artifact, name: str) -> Mapping[str, float]:
    """The share of a component's weights that each number type holds, the largest first; {} where the engine does not tell."""
    found = stored(artifact, name)
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda one: -one[1])
    return {kind: count / total for kind, count in ordered if count} if total else {}


def warnings(before: Artifact, after: Artifact, name: str, left: int = 0) -> Iterator[str]:
    """What a user must hear of a component that was to hold its weights in few bits.

    Args:
        left: how many of its weights are no layer's that is packed, or stay wide because a recipe says so.
    """
    packed = after.components[name].quantization
    if packed is None:
        return
    wide = {kind: share for kind, share in shares(after, name).items() if kind in WIDE}
    expected = left / max(1, sum(stored(after, name).values()))
    if (over := sum(wide.values()) - expected) > PASSED_OVER:
        message = " and ".join(f"{share:.0%} of its weights are {kind}" for kind, share in wide.items())
        beside = f" ({over:.0%} beside embeddings, heads and what `ignore` names)" if left else ""
        yield f"`{name}` is {packed.method} in part only: {message}, which the quantizer does not reach{beside}"
    was, is_ = size(before, name), size(after, name)
    if is_ > was:
        yield f"`{name}` takes {is_ / 1e6:.2f} MB as {packed.method}, more than the {was / 1e6:.2f} MB it was made of"


def reported(found: Mapping[str, float]) -> str:
    """Shares in words: 97.2% int4, 2.8% float32."""
    return ", ".join(f"{share:.1%} {kind}" for kind, share in found.items() if share >= 0.0005)


def size(artifact: Artifact, name: str) -> int:
    """Bytes of the files that hold a component's weights."""
    files = find_engine(artifact.components[name].format).reads(artifact.folder(name))
    return sum(file.stat().st_size for file in files)
