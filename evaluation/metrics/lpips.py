"""How far an image looks from the one the original generates from the same noise, to the layers of a network: 0 is the same.

With a `.safetensors` of AlexNet and its learned channel weights this is LPIPS itself. Any other network is the paper's unlearned
variant, in which every channel counts one; its numbers compare with nothing but each other.
Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from compress.files.user_paths import expanded
from compress.params import Params, Placed
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.image_pairs import image_pairs
from evaluation.preflight.paths import of_layers
from evaluation.values import Sample
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evaluation.observe.image_pairs import Image

BATCH = 8  # pairs; the first layers of large images are large
TINY = 1e-10
Layers: TypeAlias = "Sequence[NDArray[np.float32]]"


class Lpips(Params):
    features: Annotated[str, Placed(of_layers)] = Field(
        "zoo://digits-clip",
        description="network: the zoo's CLIP, a local CLIP or DINOv2 folder, or a .safetensors of LPIPS' own AlexNet",
    )


def distances(one: Layers, other: Layers, weights: Layers = ()) -> NDArray[np.float64]:
    """Σ over layers of the mean over positions of Σ over channels w (û − v̂)², û and v̂ of unit length at each position.

    Args:
        one, other: of each layer the activations of the same n images, [n, positions, channels].
        weights: of each layer w, [channels]; none: one everywhere.

    Returns:
        float64 [n].
    """
    total = np.zeros(len(one[0]))
    for layer, (u, v) in enumerate(zip(one, other, strict=True)):
        squared = np.square(_unit(u) - _unit(v))
        apart = squared @ weights[layer] if weights else squared.sum(axis=-1)
        total += apart.mean(axis=1, dtype=np.float64)
    return total


def _unit(layer: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = layer / (np.linalg.norm(layer, axis=-1, keepdims=True) + TINY)
    return found


@metric(
    version=1,
    title="LPIPS",
    params=Lpips,
    needs=("images",),
    better="lower",
    ends=(0, math.inf),
    statistic=statistics.MEAN,
    own=True,
)
def measure(evidence: Evidence, params: Lpips) -> Sample:
    network, protocol = open_network(params.features)
    if evidence.original is None:
        return Sample(evidence.unit_ids, np.zeros(len(evidence.items)), protocol=protocol)
    return Sample(evidence.unit_ids, distances_of(network, image_pairs(evidence)), protocol=protocol)


def distances_of(network: Any, waiting: Iterator[tuple[Image, Image]]) -> NDArray[np.float64]:
    """The distance of each pair of images, `BATCH` pairs at a time, float64 [pairs]; the two of a pair are of one size."""
    weights, found = getattr(network, "weights", ()), []
    while pairs := list(islice(waiting, BATCH)):
        one, other = (network.layers(np.stack(side)) for side in zip(*pairs, strict=True))
        found.append(distances(one, other, weights))
    return np.concatenate(found)


def open_network(reference: str) -> tuple[Any, dict[str, str]]:
    """The network, and the protocol that names it."""
    if reference.endswith(".safetensors"):
        from evaluation.features.alexnet import open_alexnet

        network: Any = open_alexnet(expanded(reference))
        how = {"resize": "none", "channels": "weighed as learned"}
    else:
        from evaluation.features.opening import open_features

        network = open_features(reference, "pil")
        how = {"resize": "pil bicubic", "channels": "one each, unlearned"}
    return network, {"features": network.name, "weights": network.digest, **how}
