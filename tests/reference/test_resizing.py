"""Each way to resize against its definition, pixel by pixel in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from compress.errors import UserError
from evaluation.features.resizing import resize, resize_mode

RNG = np.random.default_rng(11)
IMAGES = RNG.integers(0, 256, (2, 13, 9, 3), dtype=np.uint8)
MODES = ("pil", "mlperf", "tf1")
Weights = Callable[[int, int, int], list[tuple[int, float]]]


def mlperf_weights(i: int, old: int, new: int) -> list[tuple[int, float]]:
    """Of old pixels for pixel i: its centre lies between two centres, the nearest at the edges."""
    place = max((i + 0.5) * old / new - 0.5, 0)
    low = min(math.floor(place), old - 1)
    return [(low, 1 - (place - low)), (min(low + 1, old - 1), place - low)]


def tf1_weights(i: int, old: int, new: int) -> list[tuple[int, float]]:
    """The same between corners: pixel 0 is always the old pixel 0."""
    place = i * old / new
    low = math.floor(place)
    return [(low, 1 - (place - low)), (min(low + 1, old - 1), place - low)]


def pil_weights(i: int, old: int, new: int) -> list[tuple[int, float]]:
    """Keys' cubic (a = −1/2), as wide as a new pixel when there are fewer of them; what leaves the image is left out."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    centre, wide = (i + 0.5) * old / new, max(old / new, 1)
    found = [(j, cubic((j + 0.5 - centre) / wide)) for j in range(old) if abs(j + 0.5 - centre) < 2 * wide]
    total = sum(weight for _, weight in found)
    return [(j, weight / total) for j, weight in found]


def by_loops(image: np.ndarray, height: int, width: int, weights: Weights) -> np.ndarray:
    """uint8 [h, w, 3] to float64 [3, height, width], width first."""
    h, w, _ = image.shape
    wide = np.zeros((h, width, 3))
    for x in range(width):
        for j, weight in weights(x, w, width):
            wide[:, x] += weight * image[:, j]
    found = np.zeros((height, width, 3))
    for y in range(height):
        for j, weight in weights(y, h, height):
            found[y] += weight * wide[j]
    return np.moveaxis(found.clip(0, 255), 2, 0)


WEIGHTS = {"pil": pil_weights, "mlperf": mlperf_weights, "tf1": tf1_weights}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [5, 9, 10, 24])
def test_every_mode_is_its_definition(mode: str, size: int) -> None:
    found = resize(IMAGES, size, resize_mode(mode)).numpy()
    assert found.dtype == np.float32
    assert found.shape == (2, 3, size, size)
    for image, one in zip(IMAGES, found, strict=True):
        assert np.abs(one - by_loops(image, size, size, WEIGHTS[mode])).max() < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turned", [False, True])
def test_a_crop_fits_the_shorter_edge_and_keeps_the_middle(mode: str, turned: bool) -> None:
    images = np.swapaxes(IMAGES, 1, 2) if turned else IMAGES
    found = resize(images, 6, resize_mode(mode), "crop").numpy()
    whole = by_loops(images[0], *((6, 8) if turned else (8, 6)), WEIGHTS[mode])  # 13 × 6/9 is 8 and a bit
    middle = whole[:, :, 1:7] if turned else whole[:, 1:7]
    assert np.abs(found[0] - middle).max() < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_a_image_of_the_right_size_is_left_alone(mode: str, fit: str) -> None:
    square = IMAGES[:, :9]
    found = resize(square, 9, resize_mode(mode), fit).numpy()  # type: ignore[arg-type]
    assert np.array_equal(found, np.moveaxis(square, 3, 1))


def test_pil_is_pillow_on_float_images_and_is_not_rounded() -> None:
    by_hand = Image.fromarray(IMAGES[0, :, :, 1].astype(np.float32)).resize((7, 7), Image.Resampling.BICUBIC)
    found = resize(IMAGES, 7, "pil").numpy()[0, 1]
    assert np.array_equal(found, np.asarray(by_hand).clip(0, 255))
    assert not np.array_equal(found, found.round())


def test_an_edge_does_not_leave_what_a_image_can_hold() -> None:
    edge = np.zeros((1, 8, 8, 3), np.uint8)
    edge[:, :, 4:] = 255
    found = resize(edge, 20, "pil")
    assert (found.min(), found.max()) == (0, 255)


def test_the_modes_differ_where_detail_is_lost() -> None:
    """Stripes one pixel wide, made a quarter as large: only antialiasing gives their mean."""
    stripes = np.zeros((1, 32, 32, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(resize(stripes, 8, "pil").numpy()[:, :, :, 1:-1] - 127.5).max() < 12
    assert np.array_equal(resize(stripes, 8, "tf1").numpy(), np.full((1, 3, 8, 8), 255))
    shifted = np.roll(stripes, 1, axis=2)
    assert np.abs(resize(shifted, 8, "tf1").numpy()).max() == 0


def test_images_do_not_depend_on_their_company() -> None:
    for mode in MODES:
        together = resize(IMAGES, 7, resize_mode(mode))
        assert np.array_equal(together[1:], resize(IMAGES[1:], 7, resize_mode(mode)))


def test_an_unknown_mode_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="lanczos") as caught:
        resize_mode("lanczos")
    assert caught.value.problems[0].fix == "one of pil, mlperf, tf1"
