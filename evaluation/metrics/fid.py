"""Fréchet distance between generated and real images' features, as Gaussians. Reported; gate on `kid`, which is unbiased.

Refused for as few images as there are features, whose covariance is singular, unless `allow_few` is set: then the number is
marked as not comparable. The interval comes from each item's influence, never from a bootstrap, which moves FID upwards. It
tells the scatter and not the bias of few images, which differs between two sides of different spread: `fid_infinity` has little.
Source: Heusel et al. (2017).
"""

from __future__ import annotations

from pydantic import Field

from compress.params import Fault
from evaluation.distances import frechet
from evaluation.distances.image_sets import Linear, observe
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.observe.repeats import noises, over_noises, units_of
from evaluation.preflight.references import AgainstReal
from evaluation.values import Estimate, Sample, Sizes, Statistic


def least_of(d: int) -> int:
    return d + 1


class Fid(AgainstReal):
    allow_few: bool = Field(False, description="also with no more images than features, marked as not comparable")


def score(sample: Sample) -> Estimate:
    parts = noises(sample)
    found = [frechet.linear(one) for one in parts]
    note = frechet.message(parts[0], next((distance.note for _, distance in found if distance.note), ""))
    return Linear.mean([one for one, _ in found]).estimate(units_of(sample), note)


def contrast(candidate: Sample, baseline: Sample) -> Estimate:
    one, other = (over_noises(lambda part: frechet.linear(part)[0], sample) for sample in (candidate, baseline))
    return one.minus(other).estimate(units_of(candidate), frechet.message(noises(candidate)[0]))


def enough(params: Fid, sizes: Sizes) -> Fault | None:
    return None if params.allow_few else frechet.enough("FID", params.features, least_of, sizes)


@metric(
    version=2,
    title="FID",
    params=Fid,
    needs=("images",),
    better="lower",
    statistic=Statistic("difference", score, contrast),
    enough=enough,
)
def measure(evidence: Evidence, params: Fid) -> Sample:
    found = observe(evidence, params)
    if not params.allow_few:
        frechet.refuse_few(noises(found)[0], "FID", least_of(found.values.shape[1]))
    return found
