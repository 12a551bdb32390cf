"""FID as it would be with endlessly many images: the Fréchet distance extrapolated over 1/N, which takes its bias away.

From the FID of all items, of halves and of quarters of them, so it needs twice as many images as FID does, and is refused
below that unless `allow_few` is set. May be gated, as a difference. Source: Chong and Forsyth (2020).
"""

from __future__ import annotations

from compress.params import Fault
from evaluation.distances import frechet
from evaluation.distances.image_sets import observe
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.metrics.fid import Fid
from evaluation.observe.repeats import noises, over_noises, units_of
from evaluation.values import Estimate, Sample, Sizes, Statistic


def least_of(d: int) -> int:
    return 2 * (d + 1)


class FidInfinity(Fid):
    """As FID's."""


def score(sample: Sample) -> Estimate:
    return over_noises(frechet.limit, sample).estimate(units_of(sample), _message(noises(sample)[0]))


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    found = over_noises(frechet.limit, candidate).minus(over_noises(frechet.limit, baseline))
    return found.estimate(units_of(candidate), _message(noises(candidate)[0]))


def _message(sample: Sample) -> str:
    n, d = sample.values.shape
    return frechet.message(sample, "from parts of " + ", ".join(str(n // count) for count in frechet.sizes(n, d)))


def enough(params: FidInfinity, sizes: Sizes) -> Fault | None:
    return None if params.allow_few else frechet.enough("FID∞", params.features, least_of, sizes)


@metric(
    version=1,
    title="FID∞",
    params=FidInfinity,
    needs=("images",),
    better="lower",
    statistic=Statistic("difference", score, contrast),
    enough=enough,
)
def measure(evidence: Evidence, params: FidInfinity) -> Sample:
    found = observe(evidence, params)
    if not params.allow_few:
        frechet.refuse_few(noises(found)[0], "FID∞", least_of(found.values.shape[1]))
    return found
