"""Metrics of what was made of an image, against plain loops and against what must be so."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.data.items import Item
from evaluation.evidence import Evidence
from evaluation.metrics import directional_similarity, lpips
from evaluation.metrics.psnr import CAP

SIDE, COUNT = 16, 3
RNG = np.random.default_rng(5)
INPUTS = RNG.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
OURS, THEIRS = (RNG.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8) for _ in range(2))
MASKS = np.zeros((COUNT, SIDE, SIDE), bool)
for number in range(COUNT):
    MASKS[number, 2 : 8 + number, 3:10] = True


def evidence(images: NDArray[np.uint8], original: Evidence | None = None, **changes: Any) -> Evidence:
    items = tuple(
        Item(
            str(i),
            "a red three",
            input=lambda i=i: INPUTS[i],
            mask=lambda i=i: MASKS[i],
            before="a cat",
            after="a red cat",
        )  # type: ignore[misc]
        for i in range(COUNT)
    )
    found = Evidence(Artifact(Path(), "inpainting", {}), items, original, lambda index: images[index])
    return replace(found, **changes)


def measured(name: str, side: Evidence, **params: Any) -> Any:
    metric = find_metric(name)
    return metric.measure(side, metric.params(**params))


def pasted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(MASKS[..., None], images, INPUTS)


def test_what_a_mask_leaves_alone_is_measured_pixel_by_pixel() -> None:
    found = measured("unmasked_psnr", evidence(OURS)).values
    for number in range(COUNT):
        errors = []
        for row in range(SIDE):
            for column in range(SIDE):
                if not MASKS[number, row, column]:
                    pair = zip(OURS[number, row, column], INPUTS[number, row, column], strict=True)
                    errors += [(int(a) - int(b)) ** 2 for a, b in pair]
        assert found[number] == pytest.approx(10 * math.log10(255**2 / (sum(errors) / len(errors))), abs=1e-9)


def test_what_is_pasted_is_the_input_outside_the_mask() -> None:
    sample = measured("unmasked_psnr", evidence(pasted(OURS)))
    assert (sample.values == CAP).all()
    assert sample.note == "3 of 3 images are the input itself outside the mask"
    other = pasted(OURS)
    other[1, 0, 0, 0] ^= 1
    assert measured("unmasked_psnr", evidence(other)).note.startswith("2 of 3")


def test_only_what_is_in_the_mask_counts_there() -> None:
    """LPIPS of two images pasted into one input is that of the pasted ones, whatever the sides have outside."""
    network, _ = lpips.open_network("zoo://digits-clip")
    pairs = list(zip(pasted(THEIRS), pasted(OURS), strict=True))
    wanted = [lpips.distances(network.layers(a[None]), network.layers(b[None]))[0] for a, b in pairs]
    found = measured("masked_lpips", evidence(OURS, evidence(THEIRS))).values
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    outside = np.where(MASKS[..., None], OURS, 255 - OURS)
    np.testing.assert_array_equal(measured("masked_lpips", evidence(outside, evidence(THEIRS))).values, found)
    assert (measured("masked_lpips", evidence(THEIRS)).values == 0).all()
    side = evidence(pasted(OURS), evidence(pasted(THEIRS)))
    np.testing.assert_array_equal(measured("masked_lpips", side).values, measured("lpips", side).values)


def test_the_input_given_back_has_no_distance_to_itself() -> None:
    assert (measured("input_lpips", evidence(INPUTS)).values == 0).all()
    far = measured("input_lpips", evidence(OURS)).values
    assert (far > measured("input_lpips", evidence(pasted(OURS))).values).all()
    assert find_metric("input_lpips").better == "same"


def test_the_way_of_an_edit_is_compared_with_that_of_its_captions() -> None:
    from evaluation.features.clip import open_clip

    clip = open_clip("zoo://digits-clip")
    before, after = (clip.images([images]).astype(np.float64) for images in (INPUTS, OURS))
    words = clip.captions(["a cat", "a red cat"]).astype(np.float64)
    asked = words[1] - words[0]
    wanted = []
    for one, other in zip(before, after, strict=True):
        way = other - one
        dot = sum(a * b for a, b in zip(way, asked, strict=True))
        wanted.append(100 * dot / math.sqrt(sum(way**2)) / math.sqrt(sum(asked**2)))
    sample = measured("directional_similarity", evidence(OURS))
    np.testing.assert_allclose(sample.values, wanted, rtol=1e-4)
    assert (measured("directional_similarity", evidence(INPUTS)).values == 0).all()


def test_a_way_is_one_with_itself_and_opposed_to_its_reverse() -> None:
    ways = RNG.normal(size=(4, 8)).astype(np.float32)
    np.testing.assert_allclose(directional_similarity.cosines(ways, 3 * ways), 1)
    np.testing.assert_allclose(directional_similarity.cosines(ways, -ways), -1)
    assert (directional_similarity.cosines(ways, np.zeros_like(ways)) == 0).all()


def test_inputs_are_seen_at_the_size_of_what_is_generated(tmp_path: Path) -> None:
    large = np.kron(INPUTS, np.ones((1, 2, 2, 1), np.uint8))
    items = tuple(replace(item, input=lambda i=i: large[i]) for i, item in enumerate(evidence(OURS).items))  # type: ignore[misc]
    side = evidence(OURS, items=items, memory=tmp_path, data_key="key")
    for name in ("unmasked_psnr", "input_lpips", "directional_similarity"):
        assert np.isfinite(measured(name, side).values).all()
    assert (
        measured("directional_similarity", side).values.tolist()
        == measured("directional_similarity", side).values.tolist()
    )


@pytest.mark.parametrize("name", ["unmasked_psnr", "masked_lpips", "input_lpips", "directional_similarity"])
def test_they_are_of_what_is_given_images_alone(name: str) -> None:
    from compress.catalogue import tasks_for

    found = set(tasks_for(find_metric(name).needs))
    assert "text_to_image" not in found
    assert "inpainting" in found
    assert ("masks" in find_metric(name).needs) == (found == {"inpainting"})
