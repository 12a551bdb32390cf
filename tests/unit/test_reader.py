"""The reader: it reads scans it never saw, and gives no mark for the right digit in the wrong place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compress.errors import DataError
from compress.zoo import scenes
from compress.zoo.digit_classifier import FOLDER, NOTHING_DIGIT, NOTHING_INK, load_reader, marks


@pytest.fixture(scope="module")
def held_out() -> tuple[list[scenes.Scene], np.ndarray]:
    found = [scenes.scene("test", 5_000 + i) for i in range(300)]
    return found, np.stack([scenes.render(s) for s in found])


def test_unseen_scans_are_read(held_out):
    found, images = held_out
    digits, inks = marks([s.caption for s in found], images)
    assert digits.shape == inks.shape == (300,)
    assert digits.mean() >= 0.95
    assert inks.mean() >= 0.98


def test_empty_slots_are_read_as_empty(held_out):
    found, images = held_out
    digits, inks = load_reader().read(images)
    assert digits.shape == inks.shape == (300, len(scenes.SLOTS))
    taken = np.array([[slot in scenes.PLACES[s.layout] for slot in scenes.SLOTS] for s in found])
    assert ((digits == NOTHING_DIGIT) != taken).mean() > 0.98
    assert ((inks == NOTHING_INK) != taken).mean() > 0.98


def test_swapped_digits_and_inks_earn_nothing():
    pair = next(s for i in range(1000) if (s := scenes.scene("test", i)).layout == "left" and _differ(s))
    image = scenes.render(pair)[None]
    one, other = ((d.value, d.ink) for d in pair.digits)
    right, swapped = marks([pair.caption], image), marks([scenes.describe("left", (other, one), pair.paper)], image)
    assert (right[0][0], right[1][0]) == (1.0, 1.0)
    assert (swapped[0][0], swapped[1][0]) == (0.0, 0.0)


def test_one_wrong_ink_of_two_is_half_right():
    pair = next(s for i in range(1000) if (s := scenes.scene("test", i)).layout == "above" and _differ(s))
    inks = [ink for ink in scenes.INKS if ink not in {d.ink for d in pair.digits}]
    regenerated = replace(pair, digits=(replace(pair.digits[0], ink=inks[0]), pair.digits[1]))
    digits, ink_marks = marks([pair.caption], scenes.render(regenerated)[None])
    assert (digits[0], ink_marks[0]) == (1.0, 0.5)


def _differ(scene: scenes.Scene) -> bool:
    """Both digits and both inks differ, and the reader reads this scan."""
    one, other = scene.digits
    if one.value == other.value or one.ink == other.ink:
        return False
    return bool(marks([scene.caption], scenes.render(scene)[None])[0][0] == 1.0)


def test_blank_paper_earns_nothing():
    blank = np.full((1, 64, 64, 3), 250, dtype=np.uint8)
    digits, inks = marks(["a red three on white paper"], blank)
    assert (digits[0], inks[0]) == (0.0, 0.0)


def test_a_reading_does_not_depend_on_its_batch(held_out):
    _, images = held_out
    together = load_reader().read(images[:70])
    alone = [load_reader().read(images[i : i + 1]) for i in range(70)]
    assert np.array_equal(together[0], np.concatenate([a[0] for a in alone]))
    assert np.array_equal(together[1], np.concatenate([a[1] for a in alone]))


def test_a_caption_outside_the_grammar_names_itself_and_the_fix():
    with pytest.raises(DataError) as error:
        marks(["a cat"], np.zeros((1, 64, 64, 3), np.uint8))
    assert "a cat" in str(error.value)
    assert "zoo://digits only" in str(error.value)


def test_the_shipped_reader_is_small():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 2_000_000
