"""Peak signal to noise, decibel, of what lies outside the mask as a copy of the input: how much of what was to stay has stayed.

10 log₁₀ (255² ÷ mean squared difference) of the pixels that the mask leaves alone, then the mean of images. Pipelines that decode
the whole image change all of it a little; with `padding_mask_crop` diffusers pastes what it inpainted into the input, and each image is at the
58.9 dB that `psnr` counts as equal. Input and mask are taken at the size of what is generated.
"""

from __future__ import annotations

import numpy as np

from compress.params import Params
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.metrics.psnr import CAP, ROUNDING
from evaluation.observe.given_images import edited, mask_of
from evaluation.values import Sample
from evaluation.verdict import statistics


class UnmaskedPsnr(Params):
    """Nothing to set."""


@metric(
    version=1,
    title="PSNR outside the mask",
    params=UnmaskedPsnr,
    needs=("images", "inputs", "masks"),
    better="higher",
    statistic=statistics.MEAN,
    unit="dB",
)
def measure(evidence: Evidence, params: UnmaskedPsnr) -> Sample:
    found, equal = np.empty(len(evidence.items)), 0
    for index, (before, after) in enumerate(edited(evidence)):
        kept = ~mask_of(evidence, index, after)
        error = np.square(before[kept].astype(np.float64) - after[kept])
        equal += not error.any()
        found[index] = 10 * np.log10(255**2 / max(error.mean(), ROUNDING)) if kept.any() else np.nan
    note = f"{equal} of {len(found)} images are the input itself outside the mask"
    return Sample(evidence.unit_ids, found, protocol={"range": 255, "cap": CAP}, note=note)
