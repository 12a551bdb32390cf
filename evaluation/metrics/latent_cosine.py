"""Cosine between the latents that an image is decoded from and the original's, from the same noise: 1 is the same direction.

Before the decoder, whose own error it therefore does not see: where the two sides' decoders want latents scaled otherwise, those
that the pipelines have before they scale them. A pipeline that decodes nothing has no latents, and no number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compress.errors import StageFailed
from compress.params import Params
from compress.pipelines.autoencoders import VAE, Scaling, scaling_of
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTHING = "this pipeline decodes nothing"


class LatentCosine(Params):
    """Nothing to set."""


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of two arrays of one shape, as vectors; 0 where one of them is all zeros."""
    u, v = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    lengths = float(np.linalg.norm(u) * np.linalg.norm(v))
    return float(u @ v) / lengths if lengths else 0.0


def _scaling(evidence: Evidence) -> Scaling | None:
    return scaling_of(evidence.artifact) if VAE in evidence.artifact.components else None


def _unscaled(latent: NDArray[np.float32], scaling: Scaling | None) -> NDArray[np.float32]:
    if scaling is None:
        return latent
    factor, shift = (np.array(numbers, np.float32)[:, None, None] for numbers in (scaling.factor, scaling.shift))
    found: NDArray[np.float32] = (latent - shift) / factor
    return found


@metric(
    version=1,
    title="latent cosine",
    params=LatentCosine,
    needs=("images", "latents"),
    better="higher",
    ends=(-1, 1),
    statistic=statistics.MEAN,
    own=True,
)
def measure(evidence: Evidence, params: LatentCosine) -> Sample:
    count = len(evidence.items)
    if evidence.latent is None:
        return Sample(evidence.unit_ids, np.full(count, np.nan), note=NOTHING)
    if evidence.original is None:
        return Sample(evidence.unit_ids, np.ones(count))
    if evidence.original.latent is None:
        return Sample(evidence.unit_ids, np.full(count, np.nan), note=f"the original has no latents: {NOTHING}")
    found = np.empty(count)
    scalings = _scaling(evidence.original), _scaling(evidence)
    for index, item in enumerate(evidence.items):
        one, other = evidence.original.latent(index), evidence.latent(index)
        if one.shape != other.shape:
            raise StageFailed(
                f"the original's latents are {one.shape} and the candidate's {other.shape}",
                place=item.id,
                fix="let both generate one size, or drop latent_cosine: latents of two autoencoders do not compare",
            )
        if scalings[0] != scalings[1]:
            one, other = (_unscaled(*pair) for pair in zip((one, other), scalings, strict=True))
        found[index] = cosine(one, other)
    return Sample(evidence.unit_ids, found)
