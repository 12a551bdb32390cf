"""How far the painted pictures are from real ones as a set: the unbiased squared maximum mean discrepancy.

The polynomial kernel (x·y/d + 1)³ over the features, those of unit length scaled by √d. Gate on this one: FID is reported beside
it. The interval is a jackknife over prompts, paired in both arms. Source: Bińkowski et al., "Demystifying MMD GANs" (2018).
"""

from __future__ import annotations

from evaluation import mmd
from evaluation.evidence import Evidence
from evaluation.scores import Estimate, Sample, Statistic, metric
from evaluation.two_sets import AgainstReal, observe_pictures, paired, real


class Kid(AgainstReal):
    """As every metric's that holds painted pictures against real ones."""


def score(sample: Sample) -> Estimate:
    kernel = mmd.cubic(sample.values, real(sample))
    return mmd.linear(sample.values, real(sample), kernel, paired=paired(sample)).estimate(len(sample.values))


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    kernel = mmd.cubic(candidate.values, baseline.values, real(candidate))
    one, other = (mmd.linear(s.values, real(s), kernel, paired=paired(s)) for s in (candidate, baseline))
    return one.minus(other).estimate(len(candidate.values))


@metric(
    version=2,
    title="KID",
    params=Kid,
    needs=("pictures",),
    better="lower",
    statistic=Statistic("difference", score, contrast),
)
def measure(evidence: Evidence, params: Kid) -> Sample:
    return observe_pictures(evidence, params, "KID")
