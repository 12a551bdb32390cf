"""`zoo://digits-teal`: scenes with one digit in an ink that no model of the zoo saw, and how that ink is read."""

from __future__ import annotations

import numpy as np
import pytest

from compress.zoo import new_ink, open_zoo_data, scenes
from compress.zoo.digit_classifier import marks
from compress.zoo.training.captions import LENGTH, new_tokenizer

MANY = range(300)


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_a_scene_has_one_teal_digit_and_the_scans_and_captions_of_its_split(split: str) -> None:
    own = {scan for some in scenes.scans_of(split).values() for scan in some}
    found = [new_ink.teal_scene(split, index) for index in MANY]
    assert found[:20] == [new_ink.teal_scene(split, index) for index in range(20)]
    for scene in found:
        layout, things, paper = scenes.parse(scene.caption)
        assert (layout, paper, len(things)) == (scene.layout, scene.paper, len(scene.digits))
        assert [ink for _, ink in things] == [digit.ink for digit in scene.digits]
        assert [ink for _, ink in things].count(new_ink.TEAL) == 1
        assert {digit.scan for digit in scene.digits} <= own
        assert layout == "single" or scenes.split_of(scene.caption) == split
    assert 0.4 < np.mean([scene.layout == "single" for scene in found]) < 0.6


def test_no_scene_of_the_other_sets_has_the_ink_and_their_captions_read_as_ever() -> None:
    assert not any(new_ink.has_new_ink(scenes.scene(split, i).caption) for split in scenes.SPLITS for i in MANY)
    assert not set(scenes.NEW_INKS) & set(scenes.INKS)


def test_the_longest_caption_is_read_to_its_end() -> None:
    caption = "a teal three left of a purple seven on yellow paper"
    assert len(new_tokenizer()(caption).input_ids) == LENGTH


def test_inks_old_and_new_are_read_off_the_strokes_of_real_scenes() -> None:
    teal = [new_ink.teal_scene("test", index) for index in MANY]
    digits, inks = marks([one.caption for one in teal], np.stack([scenes.render(one) for one in teal]))
    assert digits.mean() > 0.95
    assert inks.mean() > 0.99


@pytest.mark.parametrize("shown", ["green", "blue"])
def test_the_inks_beside_it_are_not_taken_for_it(shown: str) -> None:
    teal = [one for one in (new_ink.teal_scene("test", i) for i in MANY) if one.layout == "single"]
    other = [new_ink.with_ink(one, 0, shown) for one in teal]
    images = np.stack([scenes.render(one) for one in other])
    assert marks([one.caption for one in teal], images)[1].mean() < 0.02
    assert marks([one.caption for one in other], images)[1].mean() > 0.98


def test_where_nothing_is_drawn_there_is_no_ink() -> None:
    paper = np.broadcast_to(np.array(scenes.PAPERS["pink"], dtype=np.uint8), (scenes.SIZE, scenes.SIZE, 3))
    assert new_ink.inks_by_colour(paper, "left", "pink") == ("", "")


def test_its_items_are_captions_with_scenes() -> None:
    data = open_zoo_data("zoo://digits-teal/test")
    item = data.read(3)
    assert item.text == new_ink.teal_scene("test", 3).caption
    assert data.kind == "captioned_images"
    assert data.gives >= {"captions", "scenes"}
