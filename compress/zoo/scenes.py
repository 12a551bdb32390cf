"""`zoo://digits`: real scans of handwritten digits, set into small coloured scenes with captions in one fixed grammar.

The 1,797 scans (8×8, 16 grey levels) are scikit-learn's `load_digits`, from the UCI test set of Alpaydin and Kaynak (1998). A
scene is a pure function of (split, index, seed): which scans, inks, paper, places and sizes follow from those three alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
SIZE = 64  # pixels a side
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {
    "red": (205, 25, 35),
    "green": (15, 135, 55),
    "blue": (35, 65, 205),
    "black": (25, 25, 30),
    "purple": (135, 35, 165),
    "orange": (235, 115, 0),
}
NEW_INKS = {"teal": (14, 112, 119)}  # of captions that no model of the zoo was trained on: `new_ink.py`
PAPERS = {"white": (250, 250, 248), "yellow": (250, 238, 150), "pink": (252, 214, 226), "grey": (208, 212, 218)}
SLOTS = ("centre", "left", "right", "top", "bottom")
SPLITS = ("train", "validation", "test")
Layout = Literal["single", "left", "above"]
PLACES: dict[Layout, tuple[str, ...]] = {"single": ("centre",), "left": ("left", "right"), "above": ("top", "bottom")}
CENTRES = {"centre": (32, 32), "left": (32, 17), "right": (32, 47), "top": (17, 32), "bottom": (47, 32)}  # row, column
SINGLE_SHARE = 0.5

_COLOURS = {**INKS, **NEW_INKS}
_THING = rf"(?P<ink{{0}}>{'|'.join((*INKS, *NEW_INKS))}) (?P<digit{{0}}>{'|'.join(WORDS)})"
_GRAMMAR = re.compile(
    rf"a {_THING.format(1)}(?: (?P<relation>left of|above) a {_THING.format(2)})? on (?P<paper>{'|'.join(PAPERS)}) paper"
)


@dataclass(frozen=True)
class Digit:
    """One digit as drawn: its value, its ink, the scan it comes from, and where and how large it lies (pixels)."""

    value: int
    ink: str
    scan: int
    row: int
    column: int
    size: int


@dataclass(frozen=True)
class Scene:
    caption: str
    layout: Layout
    digits: tuple[Digit, ...]
    paper: str
    tint: tuple[int, ...]  # small shifts of ink and paper colours, three numbers each


@cache
def scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All scans, [1797, 8, 8] in 0..1, and their digits [1797]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


@cache
def scans_of(split: str) -> dict[int, tuple[int, ...]]:
    """Scan numbers of a split by digit. The splits share none: 72%, 11% and 17% of every digit's scans."""
    if split not in SPLITS:
        raise ValueError(f"{split!r} is no split of {SPLITS}")
    _, targets = scans()
    parts = {}
    for digit in range(10):
        order = np.random.default_rng([VERSION, digit]).permutation(np.flatnonzero(targets == digit))
        first, second = int(0.72 * len(order)), int(0.83 * len(order))
        piece = {"train": order[:first], "validation": order[first:second], "test": order[second:]}[split]
        parts[digit] = tuple(int(i) for i in piece)
    return parts


def split_of(caption: str) -> str:
    """The split a two-digit caption belongs to; by its hash, so that test captions were never trained on."""
    draw = hashlib.sha256(caption.encode()).digest()[0] / 256
    return "train" if draw < 0.8 else "validation" if draw < 0.9 else "test"


def scene(split: str, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of a split; the same for the same three arguments, whatever was asked before."""
    rng = np.random.default_rng([VERSION, seed, SPLITS.index(split), index])
    layout: Layout = "single" if rng.random() < SINGLE_SHARE else ("left" if rng.random() < 0.5 else "above")
    while True:
        values = [int(rng.integers(10)) for _ in PLACES[layout]]
        inks = [list(INKS)[int(rng.integers(len(INKS)))] for _ in values]
        paper = list(PAPERS)[int(rng.integers(len(PAPERS)))]
        caption = describe(layout, tuple(zip(values, inks, strict=True)), paper)
        if layout == "single" or split_of(caption) == split:
            break
    digits = tuple(_place(rng, split, layout, *args) for args in zip(PLACES[layout], values, inks, strict=True))
    tint = tuple(int(t) for t in rng.integers(-8, 9, size=3 * (len(digits) + 1)))
    return Scene(caption, layout, digits, paper, tint)


def _place(rng: np.random.Generator, split: str, layout: Layout, place: str, value: int, ink: str) -> Digit:
    choices = scans_of(split)[value]
    scan = choices[int(rng.integers(len(choices)))]
    size = int(rng.integers(40, 49) if layout == "single" else rng.integers(27, 32))
    jitter = 3 if layout == "single" else 1
    row, column = CENTRES[place]
    return Digit(
        value,
        ink,
        scan,
        row + int(rng.integers(-jitter, jitter + 1)),
        column + int(rng.integers(-jitter, jitter + 1)),
        size,
    )


def describe(layout: Layout, things: tuple[tuple[int, str], ...], paper: str) -> str:
    """The caption of a layout, its (digit, ink) pairs and its paper."""
    words = [f"a {ink} {WORDS[value]}" for value, ink in things]
    middle = words[0] if layout == "single" else f"{words[0]} {'left of' if layout == 'left' else 'above'} {words[1]}"
    return f"{middle} on {paper} paper"


def is_scene(caption: str) -> bool:
    """Whether a caption is one of the grammar."""
    return _GRAMMAR.fullmatch(caption) is not None


def parse(caption: str) -> tuple[Layout, tuple[tuple[int, str], ...], str]:
    """Layout, (digit, ink) pairs and paper of a caption.

    Raises:
        ValueError: the caption is not in the grammar.
    """
    match = _GRAMMAR.fullmatch(caption)
    if not match:
        raise ValueError(f"not in the grammar of zoo://digits: {caption!r}")
    layouts: dict[str | None, Layout] = {None: "single", "left of": "left", "above": "above"}
    layout = layouts[match["relation"]]
    things = tuple((WORDS.index(match[f"digit{i}"]), match[f"ink{i}"]) for i in (1, 2)[: len(PLACES[layout])])
    return layout, things, match["paper"]


def render(scene: Scene) -> NDArray[np.uint8]:
    """Generate a scene: uint8 [64, 64, 3]."""
    colours = np.array(scene.tint, dtype=np.float32).reshape(-1, 3)
    canvas = np.broadcast_to(np.array(PAPERS[scene.paper], dtype=np.float32) + colours[0], (SIZE, SIZE, 3)).copy()
    for digit, tint in zip(scene.digits, colours[1:], strict=True):
        cover = _enlarged(digit.scan, digit.size)
        top, left = digit.row - digit.size // 2, digit.column - digit.size // 2
        rows, columns = (
            slice(max(top, 0), min(top + digit.size, SIZE)),
            slice(max(left, 0), min(left + digit.size, SIZE)),
        )
        part = cover[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None]
        canvas[rows, columns] += part * (np.array(_COLOURS[digit.ink], dtype=np.float32) + tint - canvas[rows, columns])
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


@cache
def _enlarged(scan: int, size: int) -> NDArray[np.float32]:
    """A scan's ink cover [size, size] in 0..1, smoothly enlarged, its strokes sharpened so that ink is ink."""
    from PIL import Image

    small = Image.fromarray(scans()[0][scan])
    large = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    cover: NDArray[np.float32] = np.clip((large - 0.25) / 0.4, 0, 1)
    return cover
