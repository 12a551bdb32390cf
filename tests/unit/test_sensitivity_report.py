"""What quantizing each layer alone costs, as reports show it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from compress.quantization.sensitivity import Layer, Sensitivity, shown
from evaluation.comparison import Comparison
from evaluation.report import html, markdown, sensitivity
from tests.unit.comparisons import image
from tests.unit.test_reports import Page, printed

TIMES = (981.0, 501.0, 1.0)


def layer(cost: float, *times: float) -> Layer:
    return Layer(64, 32, "", {8: cost / 100, 4: cost}, {8: tuple(t / 100 for t in times), 4: times} if times else {})


def measured(layers: dict[str, Layer], times: tuple[float, ...] = TIMES) -> Sensitivity:
    return Sensitivity("relative error" if times else "kl", (8, 4), 32, False, 6, layers, times)


PART = measured(
    {"conv_in": layer(0.2, 0.3, 0.2, 0.1), "mid.<b>": layer(0.9, 0.1, 0.7, 1.9), "out": layer(0.0, 0.0, 0.0, 0.0)}
)


def with_table(part: Sensitivity) -> Comparison:
    stage: dict[str, Any] = {"id": "look", "stage": "analyze.sensitivity", "cached": False, "seconds": 1.0}
    facts = {"unet sensitivity": shown(part), "unet costliest": "mid 0.9"}
    return replace(image(), stages=({**stage, "size_bytes": 1000, "facts": facts},))


def test_the_page_draws_a_bar_a_layer_the_worst_first_and_a_cell_a_timestep() -> None:
    source = html.render(with_table(PART))
    page = Page(source)
    assert page.open == []
    section = source.partition("What quantizing each layer alone costs")[2].partition("<section>")[0]
    names = re.findall(r'class="forest layer"><div>([^<]+)', section)
    assert names[:3] == ["mid.&lt;b&gt;", "conv_in", "out"]
    assert names[3:] == ["conv_in", "mid.&lt;b&gt;", "out"]
    assert section.count('class="hot"') == 9
    assert "<b>" not in section
    assert "2,048 weights" in section
    assert "8 bits 0.009, 4 bits 0.9" in section


def test_the_darkest_cell_is_the_costliest_and_one_that_costs_nothing_is_blank() -> None:
    cells = re.findall(
        r'fill-opacity="([0-9.]+)"><title>([^<]+)', sensitivity.heat(sensitivity.read(with_table(PART).stages)[0])
    )
    shade = {float(cost): float(dark) for dark, cost in cells}
    assert shade[1.9] == 1.0
    assert shade[0.0] == 0.0
    assert shade[0.1] < shade[0.2] < shade[0.3] < shade[0.7]


def test_the_table_is_reported_in_words_elsewhere_and_not_as_a_fact() -> None:
    found = with_table(PART)
    message = "unet: in 4 bits alone, mid.<b> 0.9, conv_in 0.2, out 0 cost most"
    assert message in " ".join(printed(found, 200).split())
    assert r"mid.&lt;b&gt; 0.9, conv\_in 0.2, out 0 cost most" in markdown.render(found)
    assert "<b>" not in markdown.render(found)
    assert "unet sensitivity" not in html.render(found)


def test_a_language_model_has_no_heat_map_and_no_more_bars_than_can_be_read() -> None:
    many = measured({f"layer.{i}": layer(0.001 * (i + 1)) for i in range(200)}, ())
    (table,) = sensitivity.read(with_table(many).stages)
    assert sensitivity.heat(table) == ""
    assert sensitivity.bars(table).count('class="forest layer"') == sensitivity.BARS
    assert f"the {sensitivity.BARS} of 200 layers" in sensitivity.reported(table)
    assert "nats a token" in sensitivity.reported(table)


@pytest.mark.parametrize("layers", [{}, {"a": layer(0.0, 0.0, 0.0, 0.0)}])
def test_nothing_is_drawn_of_nothing(layers: dict[str, Layer]) -> None:
    found = with_table(measured(layers))
    assert Page(html.render(found)).open == []
    assert 'class="hot"' not in html.render(found)
