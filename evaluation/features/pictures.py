"""Both sets of a distribution metric: features of what was painted, and of the real pictures behind the same items."""

from __future__ import annotations

import numpy as np

from compress.errors import UserError
from evaluation.evidence import Evidence
from evaluation.features.clip import BATCH, open_clip
from evaluation.scores import Sample


def against_real(evidence: Evidence, features: str) -> Sample:
    """Sample with `values` [n, d] of the painted and `reference` [n, d] of the real pictures.

    Raises:
        UserError: the evaluation data has captions only.
    """
    clip = open_clip(features)
    count = len(evidence.items)
    painted = clip.pictures(evidence.pictures(i, i + BATCH) for i in range(0, count, BATCH))
    real = [item.picture for item in evidence.items]
    if any(picture is None for picture in real):
        raise UserError(
            "the evaluation data has no real pictures to compare with",
            fix="give data that has them, or drop KID and FID",
        )
    found = clip.pictures(np.stack([p() for p in real[i : i + BATCH] if p]) for i in range(0, count, BATCH))
    protocol = {"features": clip.name, "weights": clip.digest, "resize": "pil bicubic"}
    return Sample(evidence.unit_ids, painted, found, protocol=protocol)
