"""Does the image show what the prompt says: 100 × the cosine between the CLIP features of both.

A score that rises too far is as suspect as one that falls, so its gate is two-sided unless asked otherwise.
Source: Hessel et al., "CLIPScore" (2021), without the clipping at zero.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.params import Params, Placed
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.preflight.paths import of_clip
from evaluation.values import Sample
from evaluation.verdict import statistics


class ClipScore(Params):
    features: Annotated[str, Placed(of_clip)] = Field(
        "zoo://digits-clip", description="CLIP model: the zoo's, or a local folder"
    )


@metric(
    version=2,
    title="CLIP score",
    params=ClipScore,
    needs=("images", "captions"),
    better="same",
    ends=(-100, 100),
    statistic=statistics.MEAN,
)
def measure(evidence: Evidence, params: ClipScore) -> Sample:
    from evaluation.features.clip import open_clip
    from evaluation.features.images import generated, protocol_of
    from evaluation.preflight.image_folders import refuse_uncaptioned

    refuse_uncaptioned(evidence, "clip_score")
    clip = open_clip(params.features)
    shown, message = generated(evidence, clip), clip.captions([item.text for item in evidence.items])
    cosines = (shown.astype(float) * message).sum(axis=1)
    return Sample(evidence.unit_ids, 100 * cosines, protocol=protocol_of(clip))
