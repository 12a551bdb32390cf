"""`zoo://digits-edits`: scenes of one digit, an instruction for each, and the scene that follows it.

"make the ink blue", "make the paper pink", "make the three an eight": an instruction names another ink, another paper, or the digit that stands there and the one that is to; a digit that is turned keeps its place,
size, ink and paper, and is another scan of the same split. What an instruction does not name stays as it is, to the pixel. An edit is a pure
function of (split, index), as a scene is. Scenes of two digits have none: "the ink" would be that of either.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from compress.zoo.scenes import INKS, PAPERS, SIZE, SPLITS, WORDS, Scene, describe, scans_of, scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
Change = Literal["digit", "ink", "paper"]
SHARES: dict[Change, float] = {"digit": 0.5, "ink": 0.25, "paper": 0.25}


@dataclass(frozen=True)
class Edit:
    """What is changed, the instruction that says so, and the scenes before and after."""

    change: Change
    instruction: str
    before: Scene
    after: Scene

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Where every image that follows the instruction is the one before it, bool [64, 64]: outside the digit's square, and nowhere where the
        paper is another."""
        found = np.full((SIZE, SIZE), self.change != "paper")
        (digit,) = self.before.digits
        top, left = digit.row - digit.size // 2, digit.column - digit.size // 2
        found[max(top, 0) : top + digit.size, max(left, 0) : left + digit.size] = False
        return found


def edit(split: str, index: int) -> Edit:
    """Edit number `index` of a split; the same for the same two arguments."""
    # Scenes of seed 0 are zoo://digits itself; those of the seeds behind it are others of the same scans.
    before = next(s for seed in itertools.count(1) if (s := scene(split, index, seed)).layout == "single")
    rng = np.random.default_rng([VERSION, 0, SPLITS.index(split), index, 1])  # no scene has five numbers
    change: Change = list(SHARES)[int(rng.choice(len(SHARES), p=list(SHARES.values())))]
    (digit,) = before.digits
    if change == "ink":
        ink = _other(rng, tuple(INKS), digit.ink)
        return Edit(change, f"make the ink {ink}", before, _changed(before, ink=ink))
    if change == "paper":
        paper = _other(rng, tuple(PAPERS), before.paper)
        return Edit(change, f"make the paper {paper}", before, _changed(replace(before, paper=paper)))
    word = _other(rng, WORDS, WORDS[digit.value])
    choices = scans_of(split)[WORDS.index(word)]
    scan = choices[int(rng.integers(len(choices)))]
    instruction = f"make the {WORDS[digit.value]} {'an' if word == 'eight' else 'a'} {word}"
    return Edit(change, instruction, before, _changed(before, value=WORDS.index(word), scan=scan))


def _other(rng: np.random.Generator, words: tuple[str, ...], word: str) -> str:
    """One of some words, and not `word`."""
    rest = [one for one in words if one != word]
    return rest[int(rng.integers(len(rest)))]


def _changed(scene: Scene, **fields: object) -> Scene:
    """A scene of one digit with fields of that digit replaced, and the caption of what it is then."""
    digit = replace(scene.digits[0], **fields)  # type: ignore[arg-type]
    caption = describe(scene.layout, ((digit.value, digit.ink),), scene.paper)
    return replace(scene, caption=caption, digits=(digit,))
