"""Does the picture show what the prompt says: 100 × the cosine between the CLIP features of both.

A score that rises too far is as suspect as one that falls, so its gate is two-sided unless told otherwise.
Source: Hessel et al., "CLIPScore" (2021), without the clipping at zero.
"""

from __future__ import annotations

from pydantic import Field

from compress.params import Params
from evaluation import statistics
from evaluation.evidence import Evidence
from evaluation.scores import Sample, metric


class ClipScore(Params):
    features: str = Field("zoo://digits-clip", description="CLIP model: the zoo's, or a local folder")


@metric(
    version=1,
    title="CLIP score",
    params=ClipScore,
    tasks=("text_to_image",),
    needs=("pictures",),
    better="same",
    statistic=statistics.MEAN,
)
def measure(evidence: Evidence, params: ClipScore) -> Sample:
    from evaluation.features.clip import BATCH, open_clip

    clip = open_clip(params.features)
    painted = clip.pictures(evidence.pictures(i, i + BATCH) for i in range(0, len(evidence.items), BATCH))
    said = clip.captions([item.text for item in evidence.items])
    protocol = {"features": clip.name, "weights": clip.digest, "resize": "pil bicubic"}
    return Sample(evidence.unit_ids, 100 * (painted * said).sum(axis=1), protocol=protocol)
