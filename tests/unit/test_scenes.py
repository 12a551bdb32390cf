"""The digits scenes: what a caption says is what is generated, and no split has seen another's scans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.zoo import scenes

INK = st.sampled_from(list(scenes.INKS))
THING = st.tuples(st.integers(0, 9), INK)
SENTENCE = st.one_of(
    st.tuples(st.just("single"), st.tuples(THING)),
    st.tuples(st.sampled_from(["left", "above"]), st.tuples(THING, THING)),
)


def luminance(colour: tuple[int, ...]) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@given(SENTENCE, st.sampled_from(list(scenes.PAPERS)))
def test_a_caption_parses_to_what_it_describes(sentence, paper):
    layout, things = sentence
    assert scenes.parse(scenes.describe(layout, things, paper)) == (layout, things, paper)


@pytest.mark.parametrize(
    ("caption", "parsed"),
    [
        ("a red three on yellow paper", ("single", ((3, "red"),), "yellow")),
        ("a red three left of a blue seven on yellow paper", ("left", ((3, "red"), (7, "blue")), "yellow")),
        ("a red three above a blue seven on white paper", ("above", ((3, "red"), (7, "blue")), "white")),
    ],
)
def test_the_three_forms_of_the_grammar(caption, parsed):
    assert scenes.parse(caption) == parsed


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red three",
        "a beige three on white paper",
        "a red ten on white paper",
        "a red three on black paper",
        "a red three below a blue seven on white paper",
        "A red three on white paper",
        "a red three on white paper.",
        "a red three on white paper\n",
        "a red three left of a blue seven above a green one on white paper",
    ],
)
def test_other_sentences_are_refused_by_name(caption):
    with pytest.raises(ValueError, match="not in the grammar") as error:
        scenes.parse(caption)
    assert repr(caption) in str(error.value)


def test_every_scan_is_in_exactly_one_split():
    by_split = {s: [i for part in scenes.scans_of(s).values() for i in part] for s in scenes.SPLITS}
    assert sorted(itertools.chain.from_iterable(by_split.values())) == list(range(1797))
    shares = [len(by_split[s]) / 1797 for s in scenes.SPLITS]
    assert shares == pytest.approx([0.72, 0.11, 0.17], abs=0.005)


def test_scans_are_filed_under_their_own_digit():
    _, targets = scenes.scans()
    for split in scenes.SPLITS:
        for digit, members in scenes.scans_of(split).items():
            assert {int(targets[i]) for i in members} == {digit}


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_scenes_use_their_splits_scans_and_captions_alone(split):
    for index in range(300):
        scene = scenes.scene(split, index)
        assert all(d.scan in scenes.scans_of(split)[d.value] for d in scene.digits)
        assert scene.layout == "single" or scenes.split_of(scene.caption) == split
        assert scenes.parse(scene.caption) == (scene.layout, tuple((d.value, d.ink) for d in scene.digits), scene.paper)


def test_the_caption_hash_holds_out_a_tenth_each():
    inks = list(scenes.INKS)
    pairs = itertools.product(range(10), inks, range(10), inks)
    found = [scenes.split_of(scenes.describe("left", ((a, i), (b, j)), "white")) for a, i, b, j in pairs]
    shares = [found.count(s) / len(found) for s in scenes.SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="holdout"):
        scenes.scans_of("holdout")


def test_a_scene_depends_on_split_index_and_seed_alone():
    forwards = [scenes.scene("test", i) for i in range(20)]
    backwards = [scenes.scene("test", i) for i in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert np.array_equal(scenes.render(forwards[3]), scenes.render(scenes.scene("test", 3)))
    assert forwards[3] != scenes.scene("test", 3, seed=1)
    assert forwards[3] != scenes.scene("validation", 3)


def test_about_half_the_scenes_hold_one_digit():
    share = np.mean([scenes.scene("train", i).layout == "single" for i in range(1000)])
    assert 0.45 < share < 0.55


def test_a_image_is_64_by_64_bytes_in_the_papers_colour_at_its_corner():
    for index in range(50):
        scene = scenes.scene("train", index)
        image = scenes.render(scene)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        corner, paper = image[0, 0].astype(int), np.array(scenes.PAPERS[scene.paper])
        assert np.abs(corner - paper).max() <= 8


def test_each_digit_leaves_its_ink_in_its_own_place():
    for index in range(100):
        scene = scenes.scene("validation", index)
        image = scenes.render(scene).astype(int)
        for digit in scene.digits:
            half = digit.size // 2
            box = image[max(digit.row - half, 0) : digit.row + half, max(digit.column - half, 0) : digit.column + half]
            near = np.abs(box - np.array(scenes.INKS[digit.ink])).max(axis=-1) <= 9
            assert near.sum() >= 8


def test_two_digits_do_not_overlap():
    for index in range(300):
        scene = scenes.scene("train", index)
        if scene.layout != "single":
            one, other = scene.digits
            along = (one.column, other.column) if scene.layout == "left" else (one.row, other.row)
            assert along[0] + one.size // 2 <= along[1] - other.size // 2 + 3


@pytest.mark.parametrize(("ink", "paper"), list(itertools.product(scenes.INKS, scenes.PAPERS)))
def test_every_ink_stands_out_from_every_paper(ink, paper):
    dark, light = luminance(scenes.INKS[ink]), luminance(scenes.PAPERS[paper])
    assert (light + 0.05) / (dark + 0.05) > 1.7
    assert np.linalg.norm(np.subtract(scenes.INKS[ink], scenes.PAPERS[paper])) > 100


def test_no_two_inks_or_papers_can_be_mistaken_after_the_tint():
    for colours in (scenes.INKS, scenes.PAPERS):
        for one, other in itertools.combinations(colours.values(), 2):
            assert np.abs(np.subtract(one, other)).max() > 16  # two tints of 8
