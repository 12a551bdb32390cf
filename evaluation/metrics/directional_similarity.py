"""Is the edit the one that was asked for: 100 × the cosine between the way from input to image and the way from the input's caption to the
image's, both in CLIP's features.

It needs both captions of each item, `input_text` and `edited_text` in the data's metadata. A side that gives back its input has gone no way,
and scores 0.
Source: Gal et al., "StyleGAN-NADA: CLIP-Guided Domain Adaptation of Image Generators" (2021); Brooks et al., "InstructPix2Pix" (2023).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from compress.files.hashing import digest_json
from compress.params import Params, Placed
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.given_images import input_of
from evaluation.preflight.paths import of_clip
from evaluation.values import Sample
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

TINY = 1e-6  # of a way between features of unit length, below which it is none


class DirectionalSimilarity(Params):
    features: Annotated[str, Placed(of_clip)] = Field(
        "zoo://digits-clip", description="CLIP model: the zoo's, or a local folder"
    )


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of n pairs of ways, [n, d] each, the cosine; 0 where one of a pair goes no way."""
    u, v = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1)
    gone = np.minimum(*lengths) > TINY
    found: NDArray[np.float64] = np.where(gone, (u * v).sum(axis=1) / np.where(gone, lengths[0] * lengths[1], 1.0), 0.0)
    return found


@metric(
    version=1,
    title="CLIP directional similarity",
    params=DirectionalSimilarity,
    needs=("images", "inputs", "edits"),
    better="higher",
    ends=(-100, 100),
    statistic=statistics.MEAN,
)
def measure(evidence: Evidence, params: DirectionalSimilarity) -> Sample:
    from evaluation.features.clip import open_clip
    from evaluation.features.feature_cache import remembered
    from evaluation.features.images import extract, generated, protocol_of

    clip, count = open_clip(params.features), len(evidence.items)
    after = generated(evidence, clip)
    like = evidence.images(0, 1)[0]
    reads = [partial(input_of, evidence, index, like) for index in range(count)]
    known = digest_json([evidence.data_key, "inputs", list(like.shape)]) if evidence.data_key else ""
    before = remembered(evidence.memory, clip, known, count, lambda: extract(clip, reads))
    asked = clip.captions([item.after for item in evidence.items]) - clip.captions(
        [item.before for item in evidence.items]
    )
    return Sample(evidence.unit_ids, 100 * cosines(after - before, asked), protocol=protocol_of(clip))
