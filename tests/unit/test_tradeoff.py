"""Speed against quality, the waterfall and the loss curve: positions, names that do not collide, and what is left out."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.recipe.gates import Gate
from evaluation.comparison import Comparison, Contribution, Row, Verdict
from evaluation.report import loss_curve, tradeoff, waterfall
from evaluation.report.label_layout import WIDTHS, Spot, box, overlap, place
from evaluation.report.tradeoff import HEIGHT, Point
from evaluation.values import Estimate
from tests.unit.comparisons import exact, image, staged, text

PERCENT = re.compile(r'(?:x1|x2|cx|x|width)="([-\d.]+)%"')


def row(name: str, comparison: Comparison | None = None) -> Row:
    return next(r for r in (comparison or staged()).rows if r.metric == name)


def with_rows(**rows: Row) -> Comparison:
    found = staged()
    return replace(found, rows=tuple(rows.get(r.metric, r) for r in found.rows))


# ---------------------------------------------------------------- the plot


def test_the_candidate_is_drawn_as_the_verdict_saw_it_and_a_stage_without_quality_is_left_out() -> None:
    points = tradeoff.points_of(staged(), row("latency"), row("digits_read"))
    assert [p.name for p in points] == ["baseline", "fuse", "int8"]
    assert (points[0].speed.value, points[0].quality.value) == (1, 0)
    assert (points[1].speed.value, points[1].quality.n) == (1.5, 64)
    assert (points[2].speed, points[2].quality) == (row("latency").contrast, row("digits_read").contrast)
    assert [p.status for p in points] == ["", "", "pass"]


def test_a_chain_whose_last_stage_was_not_scored_has_no_candidate_point() -> None:
    found = staged()
    blind = replace(found.steps[-1], quality=())
    points = tradeoff.points_of(replace(found, steps=(*found.steps[:-1], blind)), row("latency"), row("digits_read"))
    assert [(p.name, p.status) for p in points] == [("baseline", ""), ("fuse", "")]


def test_there_is_one_plot_a_gated_quality_metric_and_none_without_a_speed() -> None:
    assert tradeoff.plot(staged()).count("<svg") == 1
    slow = tuple(replace(step, speed=None) for step in staged().steps)
    assert tradeoff.plot(replace(staged(), steps=slow)) == ""
    assert tradeoff.plot(image()) == tradeoff.plot(text()) == ""


def test_everything_lies_inside_the_image() -> None:
    drawn = tradeoff.plot(staged())
    assert all(0 <= float(at) <= 100 for at in PERCENT.findall(drawn))
    heights = [float(y) for y in re.findall(r'(?:y1|y2|cy|y|height)="([-\d.]+)"', drawn)]
    assert min(heights) >= 0
    assert max(heights) <= HEIGHT + 16


def test_shaded_is_what_the_gates_of_speed_and_quality_allow_together() -> None:
    def zone(comparison: Comparison) -> tuple[float, float, float, float]:
        found = re.search(
            r'class="zone" x="([\d.]+)%" width="([\d.]+)%" y="([\d.]+)" height="([\d.]+)"', tradeoff.plot(comparison)
        )
        assert found
        return tuple(map(float, found.groups()))  # type: ignore[return-value]

    def mark(name: str) -> tuple[float, float]:
        at = ["baseline", "fuse", "int8"].index(name)
        return tuple(map(float, re.findall(r'cx="([\d.]+)%" cy="([\d.]+)"', tradeoff.plot(staged()))[at]))  # type: ignore[return-value]

    x, width, y, height = zone(staged())  # at least 2x, not worse by 0.01
    assert mark("fuse")[0] < x < mark("int8")[0]
    assert x + width == pytest.approx(100)
    assert y == 0  # more digits read is no harm
    assert y < mark("int8")[1] < y + height < HEIGHT
    free = zone(with_rows(latency=replace(row("latency"), verdict=Verdict("not gated"), gate=None)))
    assert free[:2] == (0, 100)
    both = zone(with_rows(digits_read=replace(row("digits_read"), gate=Gate(within=0.01))))
    assert both[2] > 0


@pytest.mark.parametrize(("better", "above"), [("higher", False), ("lower", True), ("same", False)])
def test_up_is_better(better: Any, above: bool) -> None:
    """The candidate reads fewer digits: below the baseline, unless fewer is what is wanted."""
    found = replace(row("digits_read"), better=better, contrast=Estimate(-0.5, -0.6, -0.4, 512))
    drawn = tradeoff.plot(with_rows(digits_read=found))
    places = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert (places[-1] < places[0]) == above


def test_the_plot_is_reported_in_words_and_escaped() -> None:
    drawn = tradeoff.plot(with_rows(digits_read=replace(row("digits_read"), title='<b>"digits"')))
    assert (
        "&lt;b&gt;&quot;digits&quot;: baseline 1.00×, 0; fuse 1.500× [1.425, 1.590], −0.004 [−0.024, 0.016]; "
        "int8 4.30× [4.11, 4.60], −0.0019 [−0.0078, 0.0039]"
    ) in drawn
    assert '<b>"' not in drawn


def test_numbers_without_an_interval_are_points_without_bars() -> None:
    odd = replace(row("digits_read"), contrast=Estimate(-0.1, math.nan, math.nan, 3))
    drawn = tradeoff.plot(with_rows(digits_read=odd))
    assert drawn.count("<circle") == 3
    assert "nan" not in drawn
    none = replace(row("digits_read"), contrast=Estimate(math.nan, math.nan, math.nan, 3))
    assert tradeoff.plot(with_rows(digits_read=none)).count("<circle") == 2


NUMBERS = st.floats(-1, 1, allow_nan=False)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 10), NUMBERS), min_size=1, max_size=8),
    st.sampled_from(["higher", "lower", "same"]),
)
def test_the_front_holds_what_no_other_beats(values: list[tuple[float, float]], better: Any) -> None:
    points = [Point(str(i), exact(a), exact(b)) for i, (a, b) in enumerate([(1.0, 0.0), *values])]
    found = tradeoff.front(points, replace(row("digits_read"), better=better))
    good = {"higher": lambda v: v, "lower": lambda v: -v, "same": lambda v: -abs(v)}[better]
    for point in points:
        faster = [
            p
            for p in points
            if p.speed.value >= point.speed.value and good(p.quality.value) >= good(point.quality.value)
        ]
        beaten = any(
            (p.speed.value, good(p.quality.value)) != (point.speed.value, good(point.quality.value)) for p in faster
        )
        assert (point in found) != beaten
    assert [p.speed.value for p in found] == sorted(p.speed.value for p in found)


SPOTS = st.lists(
    st.builds(
        lambda n, x, y: Spot("n" * n, x, y, x, x, y, y), st.integers(1, 40), st.floats(0, 100), st.floats(0, HEIGHT)
    ),
    max_size=7,
)


@settings(deadline=None, max_examples=60)
@given(SPOTS)
def test_names_do_not_collide_and_stay_in_the_image_on_a_phone_and_on_a_desk(spots: list[Spot]) -> None:
    names = place(spots, HEIGHT)
    assert len(names) == len(spots)
    for width in (WIDTHS[0], 394.0, 640.0, WIDTHS[1]):
        boxes = [box(spot, name, width) for spot, name in zip(spots, names, strict=True)]
        assert all(left >= 0 and right <= width and top >= 0 and low <= HEIGHT for left, top, right, low in boxes)
        assert not [(i, j) for i, one in enumerate(boxes) for j in range(i) if overlap(one, boxes[j])]


def test_a_long_name_is_cut_and_message_whole_in_words() -> None:
    found = staged()
    long = replace(found.steps[1], stage="distill.features-with-a-very-long-id")
    drawn = tradeoff.plot(replace(found, steps=(found.steps[0], long, *found.steps[2:])))
    assert ">distill.features-…<" in drawn
    assert "distill.features-with-a-very-long-id 1.500×" in drawn


def test_a_name_far_from_its_point_is_tied_to_it_by_a_line() -> None:
    """Eight models at one place: most names must go elsewhere, and each of those has its line."""
    found = staged()
    crowd = tuple(replace(found.steps[1], stage=f"stage number {i}") for i in range(8))
    drawn = tradeoff.plot(replace(found, steps=(found.steps[0], *crowd, found.steps[-1])))
    ties = re.findall(r'class="tie" x1="([\d.]+)%" y1="([\d.]+)" x2="([\d.]+)%" y2="([\d.]+)"', drawn)
    assert len(ties) >= 4
    assert all(x1 == x2 and abs(float(y1) - float(y2)) > 15 for x1, y1, x2, y2 in ties)


# ---------------------------------------------------------------- the waterfall


def bars(drawn: str) -> list[tuple[str, float, float]]:
    found = re.findall(r'<rect class="(gain|loss|unclear)" x="([\d.]+)%" width="([\d.]+)%"', drawn)
    return [(kind, float(left), float(left) + float(width)) for kind, left, width in found]


def test_each_bar_starts_where_the_one_before_ended() -> None:
    drawn = waterfall.waterfall(staged())
    found = bars(drawn)
    assert [kind for kind, _, _ in found] == ["gain"] * 3
    assert found[1][1] == pytest.approx(found[0][2], abs=0.02)
    assert found[2][1] == pytest.approx(found[1][2], abs=0.02)
    # Logarithmic: equal factors are equal lengths.
    lengths = [
        math.log(b) / (right - left) for b, (_, left, right) in zip((1.5, 2.6 / 1.5, 4.3 / 2.6), found, strict=True)
    ]
    assert lengths == pytest.approx([lengths[0]] * 3, rel=0.01)
    assert all(0 <= float(at) <= 100 for at in PERCENT.findall(drawn))


def with_speed(cumulative: Estimate, marginal: Estimate | None) -> Comparison:
    """`staged()`, its first stage as fast as this."""
    found = staged()
    speed = Contribution("latency", "latency", cumulative, marginal)
    return replace(found, steps=(found.steps[0], replace(found.steps[1], speed=speed), *found.steps[2:]))


def test_a_stage_that_slows_down_is_drawn_back_to_the_left() -> None:
    slower = Estimate(0.8, 0.75, 0.85, 7)
    first, second, _ = bars(waterfall.waterfall(with_speed(slower, slower)))
    assert first[0] == "loss"
    assert second[1] == pytest.approx(first[1], abs=0.02)


@pytest.mark.parametrize("alone", [Estimate(1.2, 0.9, 1.5, 7), Estimate(1.2, math.nan, math.nan, 1), None])
def test_what_may_be_no_change_is_neither_a_gain_nor_a_loss(alone: Estimate | None) -> None:
    assert bars(waterfall.waterfall(with_speed(Estimate(1.2, 0.9, 1.5, 7), alone)))[0][0] == "unclear"


def test_a_speed_that_cannot_be_drawn_leaves_a_gap_and_the_next_bar_spans_it() -> None:
    drawn = waterfall.waterfall(with_speed(Estimate(math.nan, math.nan, math.nan, 0), None))
    assert len(bars(drawn)) == 2
    assert "nan" not in drawn


def test_beside_each_bar_stands_what_the_stage_gave_and_cost() -> None:
    drawn = waterfall.waterfall(staged())
    one, two, three = re.findall(r'<div class="n">(.*?)</div>', drawn)
    assert one.startswith("<b>1.500× [1.425, 1.590]</b>")
    assert "digits read −0.004 [−0.024, 0.016]" in one
    assert "weights as large as before" in one
    assert "weights 1.31 GB → 900 MB" in two
    assert "digits read" not in two
    assert "so far 4.30× [4.08, 4.56]" in three
    assert "digits read –" in three  # the stage before has nothing to be compared with
    assert "it generated a constant image" in drawn


def test_stages_that_were_not_timed_still_tell_size_and_quality() -> None:
    found = staged()
    steps = tuple(replace(step, speed=None) for step in found.steps)
    drawn = waterfall.waterfall(replace(found, steps=steps))
    assert "<svg" not in drawn
    assert "weights 1.31 GB → 900 MB" in drawn
    headings, rows = waterfall.table(replace(found, steps=steps))
    assert headings == ("stage", "weights on disk", "digits read so far")
    assert [cells[0] for cells in rows] == ["fuse", "prune", "int8"]


def test_without_stages_there_is_no_waterfall_and_no_table() -> None:
    assert waterfall.waterfall(image()) == ""
    assert waterfall.table(image())[1] == []
    assert waterfall.units(image()) == 0
    assert waterfall.units(staged()) == 64


# ---------------------------------------------------------------- the loss curve


def test_a_loss_is_read_by_its_name_and_its_pairs() -> None:
    assert loss_curve.read("loss", [[1, 2.0], (2, 1)]) == [(1, 2.0), (2, 1)]
    assert loss_curve.read("unet loss", [[1, math.nan], [2, None], [3, 0.5]]) == [(3, 0.5)]
    assert loss_curve.read("lossy", [[1, 2.0]]) is None
    assert loss_curve.read("loss", 0.25) is None
    assert loss_curve.read("loss", [1, 2]) is None


def test_a_loss_curve_falls_from_the_upper_left_to_the_lower_right() -> None:
    drawn = loss_curve.draw("loss", [(0, 4.0), (10, 2.0), (20, 0.5)])
    assert re.findall(r'points="([^"]+)"', drawn) == ["0.0,0.0 100.0,22.9 200.0,40.0"]
    assert "loss 4.00 at step 0 → 0.500 at step 20<" in drawn


@pytest.mark.parametrize(("last", "logarithmic"), [(0.5, False), (0.3, True), (0.0, False), (-1.0, False)])
def test_a_loss_that_falls_by_more_than_a_decade_is_drawn_logarithmically(last: float, logarithmic: bool) -> None:
    assert (", logarithmic" in loss_curve.draw("loss", [(0, 4.0), (1, last)])) == logarithmic


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    drawn = loss_curve.draw("loss", [(i, 1.0 + i) for i in range(5000)])
    points = re.findall(r"[\d.]+,[\d.]+", drawn)
    assert len(points) == loss_curve.MOST
    assert (points[0], points[-1]) == ("0.0,40.0", "200.0,0.0")


def test_too_short_or_flat_curves_are_reported_and_not_broken() -> None:
    assert "<svg" not in loss_curve.draw("loss", [(7, 0.5)])
    assert "0.500 at step 7" in loss_curve.draw("loss", [(7, 0.5)])
    assert loss_curve.draw("<loss", []) == "<small>&lt;loss: no finite value</small>"
    assert "40.0" in loss_curve.draw("loss", [(1, 0.5), (2, 0.5)])
