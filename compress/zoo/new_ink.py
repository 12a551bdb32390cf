"""`zoo://digits-teal`: the scenes of `zoo://digits`, one digit of each in an ink that no model of the zoo was trained on.

Teal is what the zoo's autoencoder draws of latents half way between those of a green and of a blue digit; no caption has the word, which the tokenizer
spells. A scene is a pure function of (split, index), and has the scans of its split.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from compress.zoo.scenes import (
    CENTRES,
    INKS,
    NEW_INKS,
    PAPERS,
    PLACES,
    SPLITS,
    Layout,
    Scene,
    describe,
    scene,
    split_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
TEAL = "teal"
BETWEEN = ("green", "blue")  # the inks that it lies between
SEEDS = 7000  # of the scenes that it is put into: others than those of zoo://digits
STRONGEST = 30  # pixels of a digit's strokes that its ink is read off
FAINT = 90  # how far in colour from the paper those are at least, for no ink is nearer than 190 to any


def teal_scene(split: str, index: int) -> Scene:
    """Scene number `index` of a split. Two-digit captions belong to one split, as those of zoo://digits do."""
    rng = np.random.default_rng([VERSION, SPLITS.index(split), index])
    layout = scene(split, index, SEEDS).layout
    found = (scene(split, index, SEEDS + attempt) for attempt in count())
    made = (with_ink(one, int(rng.integers(len(one.digits))), TEAL) for one in found if one.layout == layout)
    return next(one for one in made if layout == "single" or split_of(one.caption) == split)


def with_ink(found: Scene, which: int, ink: str) -> Scene:
    """The same scene, one digit of it in another ink."""
    digits = tuple(replace(d, ink=ink) if n == which else d for n, d in enumerate(found.digits))
    return replace(
        found, digits=digits, caption=describe(found.layout, tuple((d.value, d.ink) for d in digits), found.paper)
    )


def inks_by_colour(image: NDArray[np.uint8], layout: Layout, paper: str) -> tuple[str, ...]:
    """The ink, old or new, that the strokes in each of a layout's places are nearest to; "" where there are none.

    Args:
        image: uint8 [64, 64, 3].
    """
    half = 24 if layout == "single" else 15
    found = []
    for row, column in (CENTRES[place] for place in PLACES[layout]):
        part = image[row - half : row + half, column - half : column + half].reshape(-1, 3).astype(np.float64)
        far = np.linalg.norm(part - np.array(PAPERS[paper]), axis=1)
        strokes = np.argsort(-far)[:STRONGEST]
        stroke = np.median(part[strokes], axis=0)
        ink, _ = min({**INKS, **NEW_INKS}.items(), key=lambda one: float(np.linalg.norm(np.array(one[1]) - stroke)))
        found.append(ink if far[strokes].min() > FAINT else "")
    return tuple(found)


def has_new_ink(caption: str) -> bool:
    """Whether a caption asks for an ink that the zoo's models, and its reader, never saw."""
    return any(word in NEW_INKS for word in caption.split())
