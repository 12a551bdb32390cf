"""`zoo://digits-edits` and `zoo://digits-holes`: functions of a number, whose splits share no scan, and which change what they say and nothing else."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from compress.zoo import edits, holes, open_zoo_data, scenes
from compress.zoo.digit_classifier import marks, shown
from compress.zoo.training.captions import LENGTH, new_tokenizer

MANY = range(300)


def the_edits(change: str, split: str = "test") -> list[edits.Edit]:
    return [edit for index in MANY if (edit := edits.edit(split, index)).change == change]


# ---------------------------------------------------------------- edits


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_an_edit_is_the_same_whatever_was_asked_before(split: str) -> None:
    first = [edits.edit(split, index) for index in range(20)]
    assert first[::-1] == [edits.edit(split, index) for index in reversed(range(20))]
    assert len({(edit.instruction, edit.before) for edit in first}) == 20


def test_changes_are_as_frequent_as_they_say() -> None:
    found = [edits.edit("train", index).change for index in range(2000)]
    for change, share in edits.SHARES.items():
        assert np.mean([one == change for one in found]) == pytest.approx(share, abs=0.04)


def test_no_split_has_scans_of_another_before_an_edit_or_behind_it() -> None:
    for split in scenes.SPLITS:
        own = {scan for some in scenes.scans_of(split).values() for scan in some}
        found = [edits.edit(split, index) for index in MANY]
        assert {digit.scan for edit in found for scene in (edit.before, edit.after) for digit in scene.digits} <= own


def test_scenes_before_an_edit_are_none_of_those_with_the_same_number() -> None:
    same = [edits.edit("test", index).before == scenes.scene("test", index) for index in MANY]
    assert not any(same)


@pytest.mark.parametrize("change", edits.SHARES)
def test_both_captions_tell_what_is_there_and_differ_in_what_the_instruction_names(change: str) -> None:
    for edit in the_edits(change):
        (kind, ((value, ink),), paper), (after_kind, ((after_value, after_ink),), after_paper) = (
            scenes.parse(scene.caption) for scene in (edit.before, edit.after)
        )
        assert kind == after_kind == "single"
        for scene, said in ((edit.before, (value, ink, paper)), (edit.after, (after_value, after_ink, after_paper))):
            assert (scene.digits[0].value, scene.digits[0].ink, scene.paper) == said
        differs = {"digit": value != after_value, "ink": ink != after_ink, "paper": paper != after_paper}
        assert differs == {name: name == change for name in edits.SHARES}
        named = {"digit": scenes.WORDS[after_value], "ink": after_ink, "paper": after_paper}[change]
        assert edit.instruction.split()[-1] == named
        if change == "digit":
            assert edit.instruction.split()[2] == scenes.WORDS[value]


@pytest.mark.parametrize("change", edits.SHARES)
def test_what_an_instruction_does_not_name_stays_to_the_pixel(change: str) -> None:
    for edit in the_edits(change)[:40]:
        before, after = scenes.render(edit.before), scenes.render(edit.after)
        (digit,), (changed,) = edit.before.digits, edit.after.digits
        assert (digit.row, digit.column, digit.size) == (changed.row, changed.column, changed.size)
        assert edit.before.tint == edit.after.tint
        assert (digit.scan == changed.scan) == (change != "digit")
        moved = (before != after).any(axis=-1)
        assert moved.any()
        top, left = digit.row - digit.size // 2, digit.column - digit.size // 2
        assert edit.kept.any() == (change != "paper")
        assert not moved[edit.kept].any()
        if change == "paper":  # ink that covers its paper is what it was
            covered = scenes._enlarged(digit.scan, digit.size) == 1
            inside = (slice(top, top + digit.size), slice(left, left + digit.size))
            if before[inside].shape[:2] == covered.shape:
                assert not moved[inside][covered].any()


def test_the_reader_reads_what_each_edit_leads_to() -> None:
    found = [edits.edit("test", index) for index in range(128)]
    digits, inks = marks([e.after.caption for e in found], np.stack([scenes.render(e.after) for e in found]))
    assert digits.mean() > 0.95
    assert inks.mean() > 0.98


def test_no_instruction_is_longer_than_the_text_encoder_reads() -> None:
    instructions = {edits.edit("train", index).instruction for index in range(4000)}
    assert len(instructions) == 10 * 9 + len(scenes.INKS) + len(scenes.PAPERS)
    assert "make the three an eight" in instructions
    assert max(len(new_tokenizer()(one).input_ids) for one in instructions) <= LENGTH


# ---------------------------------------------------------------- holes


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_a_hole_is_in_the_scene_of_its_number(split: str) -> None:
    found = [holes.hole(split, index) for index in range(40)]
    assert found == [holes.hole(split, index) for index in range(40)]
    assert [hole.scene for hole in found] == [scenes.scene(split, index) for index in range(40)]


def test_what_is_left_is_the_scene_outside_the_hole_and_tells_nothing_inside() -> None:
    for index in MANY:
        hole = holes.hole("test", index)
        mask, whole, rest = hole.mask, scenes.render(hole.scene), hole.rest
        assert mask.any()
        assert not mask.all()
        assert (rest[mask] == holes.GREY).all()
        assert np.array_equal(rest[~mask], whole[~mask])


def test_most_holes_take_a_whole_digit_and_the_others_a_part_of_one() -> None:
    found = [holes.hole("test", index) for index in range(1000)]
    assert np.mean([hole.whole for hole in found]) == pytest.approx(holes.WHOLE_SHARE, abs=0.05)
    for hole in found:
        ink = (scenes.render(hole.scene) != scenes.render(_without(hole))).any(axis=-1)
        if hole.whole:
            assert hole.mask[ink].all()
        else:
            assert hole.mask.sum() < hole.scene.digits[hole.of].size ** 2 / 2


def _without(hole: holes.Hole) -> scenes.Scene:
    """The scene as it is without the digit that the hole is made for."""
    scene, rest = hole.scene, [number for number in range(len(hole.scene.digits)) if number != hole.of]
    tints = [scene.tint[at : at + 3] for at in range(0, len(scene.tint), 3)]  # of the paper, then of each digit
    kept = tuple(itertools.chain(tints[0], *(tints[1 + number] for number in rest)))
    return replace(scene, digits=tuple(scene.digits[number] for number in rest), tint=kept)


# ---------------------------------------------------------------- as data


def test_edits_are_items_with_both_images_and_both_captions() -> None:
    data = open_zoo_data("zoo://digits-edits/validation")
    assert (data.kind, data.gives) == ("image_edits", {"captions", "scenes", "edits"})
    for index, item in enumerate(data.first(8)):
        edit = edits.edit("validation", index)
        assert (item.text, item.before, item.after) == (edit.instruction, edit.before.caption, edit.after.caption)
        assert item.input is not None
        assert item.image is not None
        assert np.array_equal(item.input(), scenes.render(edit.before))
        assert np.array_equal(item.image(), scenes.render(edit.after))
        assert shown(item) == edit.after.caption


def test_holes_are_items_with_what_is_left_and_a_mask() -> None:
    data = open_zoo_data("zoo://digits-holes/validation")
    assert (data.kind, data.gives) == ("masked_images", {"captions", "scenes"})
    for index, item in enumerate(data.first(8)):
        hole = holes.hole("validation", index)
        assert item.input is not None
        assert item.mask is not None
        assert item.image is not None
        assert np.array_equal(item.input(), hole.rest)
        assert np.array_equal(item.mask(), hole.mask)
        assert np.array_equal(item.image(), scenes.render(hole.scene))
        assert shown(item) == item.text == hole.scene.caption
