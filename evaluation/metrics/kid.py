"""How far the generated images are from real ones as a set: the unbiased squared maximum mean discrepancy.

The polynomial kernel (x·y/d + 1)³ over the features, those of unit length scaled by √d. Gate on this one: FID is reported beside
it. The interval is a jackknife over prompts, paired in both arms. Source: Bińkowski et al., "Demystifying MMD GANs" (2018).
"""

from __future__ import annotations

from evaluation.distances import mmd
from evaluation.distances.image_sets import Linear, observe_images, paired, real
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.repeats import over_noises, units_of
from evaluation.preflight.references import AgainstImages
from evaluation.values import Estimate, Sample, Statistic


class Kid(AgainstImages):
    """As every metric's that compares generated images with real ones."""


def score(sample: Sample) -> Estimate:
    kernel = mmd.cubic(sample.values, real(sample))
    return _linear(sample, kernel).estimate(units_of(sample))


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    kernel = mmd.cubic(candidate.values, baseline.values, real(candidate))
    one, other = (_linear(sample, kernel) for sample in (candidate, baseline))
    return one.minus(other).estimate(units_of(candidate))


def _linear(sample: Sample, kernel: mmd.Kernel) -> Linear:
    return over_noises(lambda one: mmd.linear(one.values, real(one), kernel, paired=paired(one)), sample)


@metric(
    version=2,
    title="KID",
    params=Kid,
    needs=("images",),
    better="lower",
    statistic=Statistic("difference", score, contrast),
)
def measure(evidence: Evidence, params: Kid) -> Sample:
    return observe_images(evidence, params, "KID")
