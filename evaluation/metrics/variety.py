"""How much the images of one prompt differ: the mean of 1 − cosine between the features of each two, from noises of their own.

0 where all are one image; a share of nothing, so it has no unit, and the scale is the extractor's. A sampler that generates every
noise alike loses it while CLIP score and KID hold, as students of few steps tend to. Prompts are the units, each counts once
however many images it has, and both sides are compared with each other prompt by prompt. Images of one prompt are those that
`images_per_prompt` asks for, and those of items with the same caption.
Source: mean pairwise similarity, as in Sadat et al., "CADS: Unleashing the Diversity of Diffusion Models through
Condition-Annealed Sampling" (2024).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from compress.errors import UserError
from compress.params import Fault, Params, Placed
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.repeats import EACH
from evaluation.preflight.paths import of_features
from evaluation.values import Sample, Sizes
from evaluation.verdict import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIX = "set evaluate.images_per_prompt to 4, or give data that hold prompts several times"


class Variety(Params):
    features: Annotated[str, Placed(of_features)] = Field(
        "zoo://digits-clip", description="feature extractor: the zoo's CLIP, or a local folder or file"
    )
    resize: Literal["pil", "mlperf", "tf1"] = Field(
        "pil", description="pil: antialiased bicubic; mlperf and tf1 reproduce numbers published with those"
    )


def apart(features: NDArray[Any]) -> float:
    """Mean of 1 − cosine over all pairs of rows [k, d], k at least two.

    Of rows of unit length that is half the mean squared distance of a pair, and so their variance about their mean, k − 1 in
    its denominator: unbiased, whatever k is.
    """
    rows = np.asarray(features, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return float(np.square(unit - unit.mean(axis=0)).sum() / (len(rows) - 1))


def enough(params: Variety, sizes: Sizes) -> Fault | None:
    return None if sizes.each > 1 else _few(sizes.captions())


def refuse_few(captions: Iterable[str]) -> None:
    """Raises a UserError where no prompt has two images."""
    if wrong := _few(captions):
        raise UserError(wrong.message, fix=wrong.fix)


def _few(captions: Iterable[str]) -> Fault | None:
    if any(count > 1 for count in Counter(captions).values()):
        return None
    return Fault("variety looks at several images of a prompt, and each prompt has one", FIX)


@metric(
    version=1,
    title="variety",
    params=Variety,
    needs=("images", "captions"),
    better="higher",
    ends=(0, 2),
    statistic=statistics.MEAN,
    enough=enough,
)
def measure(evidence: Evidence, params: Variety) -> Sample:
    from evaluation.features.images import generated, protocol_of
    from evaluation.features.opening import open_features
    from evaluation.preflight.image_folders import refuse_uncaptioned

    refuse_uncaptioned(evidence, "variety")
    refuse_few(item.text for item in evidence.items)
    extractor = open_features(params.features, params.resize)
    features = generated(evidence, extractor)
    prompts: dict[str, list[int]] = {}
    for index, item in enumerate(evidence.items):
        prompts.setdefault(item.text, []).append(index)
    scored = [rows for rows in prompts.values() if len(rows) > 1]
    alone = len(prompts) - len(scored)
    each: dict[str, str | int | float] = {EACH: evidence.each} if evidence.each > 1 else {}
    return Sample(
        tuple(evidence.items[rows[0]].id for rows in scored),
        np.array([apart(features[rows]) for rows in scored]),
        protocol={**protocol_of(extractor), **each},
        left_out=f"{alone} of {len(prompts)} prompts have one image, and so no variety" if alone else "",
    )
