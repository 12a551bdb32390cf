"""`zoo://digits-holes`: the scenes of `zoo://digits` with a hole in each, and the caption that says what belongs there.

Most holes take a whole digit, so that only the caption knows which it was; the others take a part of one, whose strokes go on around it. A hole
is a pure function of (split, index), and scene number `index` is that of `zoo://digits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compress.zoo.scenes import SIZE, SPLITS, Digit, Scene, render, scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
WHOLE_SHARE = 0.7
GREY = 127  # as diffusers' pipelines lay it there
MARGIN = 2  # pixels around a whole digit, at most
SIDES = (0.4, 0.7)  # of a part, as shares of its digit's side


@dataclass(frozen=True)
class Hole:
    """A scene and the rectangle that is missing of it: the pixels from (top, left) to before (bottom, right).

    of: number of the digit that it was made for; what of the other one it touches is missing too.
    whole: whether all of that digit is missing.
    """

    scene: Scene
    of: int
    whole: bool
    top: int
    left: int
    bottom: int
    right: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the image is missing, bool [64, 64]."""
        found = np.zeros((SIZE, SIZE), dtype=bool)
        found[self.top : self.bottom, self.left : self.right] = True
        return found

    @property
    def rest(self) -> NDArray[np.uint8]:
        """The image with grey where it is missing, uint8 [64, 64, 3]."""
        found: NDArray[np.uint8] = np.where(self.mask[..., None], np.uint8(GREY), render(self.scene))
        return found


def hole(split: str, index: int) -> Hole:
    """Hole number `index` of a split; the same for the same two arguments."""
    whole_scene = scene(split, index)
    rng = np.random.default_rng([VERSION, 0, SPLITS.index(split), index, 2])  # no scene has five numbers
    of = int(rng.integers(len(whole_scene.digits)))
    whole = bool(rng.random() < WHOLE_SHARE)
    edges = _around(rng, whole_scene.digits[of]) if whole else _within(rng, whole_scene.digits[of])
    top, left, bottom, right = (min(max(edge, 0), SIZE) for edge in edges)
    return Hole(whole_scene, of, whole, top, left, bottom, right)


def _around(rng: np.random.Generator, digit: Digit) -> tuple[int, ...]:
    """Edges of a rectangle around a digit."""
    top, left = digit.row - digit.size // 2, digit.column - digit.size // 2
    before, after = rng.integers(0, MARGIN + 1, 2), rng.integers(0, MARGIN + 1, 2)
    ends = (top + digit.size + int(after[0]), left + digit.size + int(after[1]))
    return top - int(before[0]), left - int(before[1]), *ends


def _within(rng: np.random.Generator, digit: Digit) -> tuple[int, ...]:
    """Edges of a rectangle in a digit."""
    tall, wide = (round(share * digit.size) for share in rng.uniform(*SIDES, 2))
    top = digit.row - digit.size // 2 + int(rng.integers(digit.size - tall + 1))
    left = digit.column - digit.size // 2 + int(rng.integers(digit.size - wide + 1))
    return top, left, top + tall, left + wide
