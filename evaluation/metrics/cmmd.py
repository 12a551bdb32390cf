"""How far the generated images are from real ones as a set, by a Gaussian kernel over CLIP features: 1000 × MMD².

It assumes no Gaussian features, as FID does, and CLIP's see distortions that Inception's miss. The original keeps each
image's kernel with itself, which makes it too large for few images; this one leaves it out and is unbiased, so it may fall
below zero. Source: Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation" (2024).
"""

from __future__ import annotations

from pydantic import Field

from evaluation.distances import mmd
from evaluation.distances.image_sets import Linear, observe_images, paired, real
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.repeats import over_noises, units_of
from evaluation.preflight.references import AgainstImages
from evaluation.values import Estimate, Sample, Statistic

SCALE = 1000
SIGMA = 10.0


class Cmmd(AgainstImages):
    sigma: float = Field(SIGMA, gt=0, description="width of the Gaussian kernel")


def score(sample: Sample) -> Estimate:
    return _linear(sample).estimate(units_of(sample))


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    return _linear(candidate).minus(_linear(baseline)).estimate(units_of(candidate))


def _linear(sample: Sample) -> Linear:
    kernel = mmd.gaussian(float(sample.protocol.get("sigma", SIGMA)))
    found = over_noises(lambda one: mmd.linear(one.values, real(one), kernel, paired=paired(one)), sample)
    return found.times(SCALE)


@metric(
    version=1,
    title="CMMD",
    params=Cmmd,
    needs=("images",),
    better="lower",
    statistic=Statistic("difference", score, contrast),
)
def measure(evidence: Evidence, params: Cmmd) -> Sample:
    return observe_images(evidence, params, "CMMD", sigma=params.sigma)
