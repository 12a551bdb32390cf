"""Reports: the words, the four files and the terminal table of comparisons that pass, fail and stay open."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

import compress
from compress.catalogue import find_metric
from compress.recipe.gates import Gate
from evaluation.comparison import IMAGES, Comparison, Completion, Contribution, Row, Side, Step, Verdict
from evaluation.comparison.control_rows import Beside, Control
from evaluation.report import formatting, html, junit, markdown, plots, result, runs_table, terminal, write
from evaluation.report.summary import questions
from evaluation.values import Estimate
from evaluation.verdict.gates import allowed_of, judge
from tests.unit.comparisons import exact, image, latency, staged, text


def printed(comparison: Comparison, width: int = 100, terminal_like: bool = False) -> str:
    stream = io.StringIO()
    colours = "standard" if terminal_like else None
    console = Console(file=stream, width=width, force_terminal=terminal_like, color_system=colours)
    terminal.show(comparison, console)
    return stream.getvalue()


def difference(contrast: Estimate, unit: str = "") -> Row:
    return replace(text().rows[1], contrast=contrast, unit=unit)


class Page(HTMLParser):
    """Tags, attributes and text as a browser would find them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br", "circle", "line", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("circle", "line", "rect", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("value", "spread", "expected"),
    [
        (0.123456, 0.0123, "0.123"),
        (12345.6, 3210.0, "12300"),
        (4.3003, 0.25, "4.30"),
        (1310.2, 0.0, "1310"),
        (0.0, 0.0, "0"),
        (-0.0001, 0.05, "0.000"),
        (-0.25, 0.05, "−0.250"),
        (2.5e-9, 0.0, "2.5e−09"),
        (math.nan, 1.0, "n/a"),
        (math.inf, 0.0, "n/a"),
    ],
)
def test_number_has_the_digits_of_its_interval(value: float, spread: float, expected: str) -> None:
    assert formatting.number(value, spread) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1310.2, "MB", "1.31 GB"),
        (331.8, "MB", "332 MB"),
        (0.052, "MB", "52.0 kB"),
        (0.0, "MB", "0 MB"),
        (12_000.0, "ms", "12.0 s"),
        (0.05, "ms", "50.0 µs"),
        (17.2, "/s", "17.2/s"),
        (0.5, "", "0.500"),
    ],
)
def test_scores_are_in_human_units(value: float, unit: str, expected: str) -> None:
    assert formatting.score(exact(value), unit) == expected


def test_contrasts_carry_sign_unit_and_interval() -> None:
    assert formatting.contrast(latency(Estimate(4.3003, 4.1123, 4.5987, 30))) == "4.30× [4.11, 4.60]"
    assert formatting.contrast(difference(Estimate(0.1153, 0.0712, 0.1598, 64))) == "+0.115 [0.071, 0.160]"
    assert formatting.contrast(difference(Estimate(-0.2, -0.3, 0.1, 64), "points")) == "−0.20 points [−0.30, 0.10]"
    assert formatting.contrast(difference(Estimate(1.1, 0.8, 1.4, 64), "MB")) == "+1.10 MB [0.80, 1.40]"
    assert formatting.contrast(difference(exact(0.0))) == "0"
    assert formatting.contrast(difference(Estimate(1.0, math.nan, math.nan, 3))) == "+1.00 [n/a, n/a]"


def sides(one: Estimate, other: Estimate, apart: Estimate, unit: str = "") -> tuple[str, str]:
    return formatting.scores(replace(difference(apart, unit), baseline=one, candidate=other))


def test_scores_have_the_digits_of_the_difference_beside_them() -> None:
    wide = Estimate(19.4031, 17.1, 21.9, 64), Estimate(19.4066, 17.1, 21.9, 64)
    assert sides(*wide, Estimate(0.0035, 0.0011, 0.0059, 64)) == ("19.403", "19.407")
    assert sides(*wide, Estimate(0.5, 0.1, 0.9, 64)) == ("19.4", "19.4")
    assert sides(*wide, exact(0.0)) == ("19.4", "19.4")
    assert sides(*wide, Estimate(0.00004, -0.4, 0.4, 64)) == ("19.4", "19.4")  # shown as 0.00
    assert sides(*wide, Estimate(2e-9, 1e-9, 3e-9, 64)) == ("19.403100", "19.406600")  # no more than six places
    assert sides(exact(331.8), exact(331.802), exact(0.002), "MB") == ("331.800 MB", "331.802 MB")
    ratio = replace(difference(Estimate(1.0002, 1.0001, 1.0003, 64)), compared="ratio")
    assert formatting.scores(replace(ratio, baseline=wide[0], candidate=wide[1])) == ("19.4", "19.4")


@given(st.floats(1e-2, 1e4), st.floats(-0.5, 0.5), st.floats(1e-3, 10), st.floats(1e-4, 0.5))
def test_two_scores_whose_difference_is_shown_never_look_equal(
    value: float, share: float, half: float, narrow: float
) -> None:
    apart = share * value
    one, other = (Estimate(v, v - half, v + half, 9) for v in (value, value + apart))
    shown = Estimate(apart, apart - narrow * half, apart + narrow * half, 9)
    assume(abs(apart) >= 1e-5)
    row = replace(difference(shown), baseline=one, candidate=other)
    seen = formatting.scores(row)
    told = re.search("[1-9]", formatting.contrast(row).partition(" ")[0])
    assert bool(told) <= (seen[0] != seen[1])
    plain = formatting.score(one, ""), formatting.score(other, "")
    assert all(len(a) >= len(b) for a, b in zip(seen, plain, strict=True))
    if not told:
        assert seen == plain


@pytest.mark.parametrize(
    ("contrast", "answer"),
    [
        (Estimate(4.3, 4.1, 4.6, 30), "Yes: 4.30× faster [4.10, 4.60] in latency."),
        (Estimate(0.5, 0.4, 0.8, 30), "No: 2.00× slower [1.25, 2.50] in latency."),
        (Estimate(1.01, 1.005, 1.015, 30), "Not shown: 1.0100× [1.0050, 1.0150] in latency is no more than the noise."),
        (Estimate(1.0, 0.9, 1.1, 30), "Not shown: 1.00× [0.90, 1.10] in latency is no more than the noise."),
        (Estimate(math.nan, math.nan, math.nan, 0), "Not measured."),
    ],
)
def test_faster_is_answered_beyond_the_noise_only(contrast: Estimate, answer: str) -> None:
    assert questions(replace(image(), rows=(latency(contrast),)))[0][1] == answer


def test_as_good_is_answered_by_the_worst_gate() -> None:
    def answer(*statuses: Any) -> str:
        rows = tuple(replace(image().rows[2], title=s, verdict=Verdict(s, "g", n_needed=9)) for s in statuses)
        return questions(replace(image(), rows=rows))[1][1]

    assert answer("pass", "pass") == "Yes: pass (g), pass (g)."
    assert answer("pass", "inconclusive") == "Not decided: inconclusive (g) needs more samples."
    assert answer("inconclusive", "fail") == "No: fail (g) failed."
    assert answer("not gated") == "Not judged: no quality gate was set."


def test_trust_names_units_noise_and_warnings() -> None:
    assert questions(text())[2][1] == (
        "Quality rests on 64 units seen by both sides; with about 25 an unchanged model passes all quality gates, and one "
        "twice a margin away fails, in four of five runs; the baseline timed against itself gives 1.002× [0.991, 1.014]; 1 warning."
    )
    assert questions(replace(image(), rows=()))[2][1] == "No warnings."


def test_machine_leaves_out_what_is_unknown() -> None:
    assert formatting.machine(replace(image(), machine={"threads": 2, "gpu": ""})) == "2 threads"
    assert formatting.machine(replace(image(), machine={"threads": 1})) == "1 thread"
    assert formatting.machine(replace(image(), machine={})) == "not recorded"


def test_a_side_tells_the_adapters_in_it_and_a_folder_of_images_no_steps() -> None:
    made = {"stage": "adapter", "params": {"adapters": [{"digest": "a", "scale": 0.5}, {"digest": "b", "scale": 1}]}}
    comparison = image()
    side = replace(comparison.baseline, lineage=(made,))
    assert "with an adapter in it (scale 0.5), with an adapter in it (scale 1)" in formatting.runs(comparison, side)
    assert "adapter" not in formatting.runs(comparison, comparison.baseline)
    assert formatting.runs(comparison, replace(side, engine=IMAGES)) == "a folder of images"


def test_a_side_tells_no_setting_that_its_model_does_not_go_by() -> None:
    comparison = replace(image(), task="instruction_editing")
    student = replace(comparison.candidate, call={"num_inference_steps": 2, "guidance_scale": 1.0})
    assert formatting.runs(comparison, student).endswith(", the pipeline's own image_guidance")
    ignored = replace(student, unheeded=("image_guidance",))
    assert formatting.runs(comparison, ignored) == "unet: openvino int8, steps 2, guidance 1.0"
    given = replace(ignored, call={**student.call, "image_guidance_scale": 1.5})
    assert formatting.runs(comparison, given) == formatting.runs(comparison, ignored)
    assert result.from_dict(result.to_dict(replace(comparison, candidate=given))).candidate == given


@pytest.mark.parametrize("make", [image, text, staged])
def test_result_validates_and_comes_back(make: Any) -> None:
    comparison = make()
    data = json.loads(json.dumps(result.to_dict(comparison), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(result.schema())
    jsonschema.validate(data, result.schema())
    assert (data["schema_version"], data["status"], data["exit_code"]) == (3, comparison.status, comparison.exit_code)
    assert result.from_dict(data) == replace(comparison, images=())


def test_result_is_json_safe_whatever_it_holds() -> None:
    odd = {
        "path": Path("a"),
        "n": np.float32(0.5),
        "a": np.arange(2),
        "inf": math.inf,
        "set": {"b", "a"},
        3: (None, True),
    }
    row = difference(Estimate(1.0, math.nan, math.inf, 3))
    data = result.to_dict(replace(image(), rows=(row,), machine=odd))
    assert data["machine"] == {
        "path": "a", "n": 0.5, "a": [0, 1], "inf": None, "set": ["a", "b"], "3": [None, True],
    }  # fmt: skip
    assert (data["rows"][0]["contrast"]["low"], data["rows"][0]["contrast"]["high"]) == (None, None)
    jsonschema.validate(data, result.schema())
    assert math.isnan(result.from_dict(data).rows[0].contrast.low)


def test_schema_refuses_a_missing_verdict_and_an_unknown_key() -> None:
    data = result.to_dict(image())
    del data["rows"][0]["verdict"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, result.schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**result.to_dict(image()), "extra": 1}, result.schema())


def test_another_schema_version_is_refused() -> None:
    with pytest.raises(ValueError, match="schema 1"):
        result.from_dict({**result.to_dict(image()), "schema_version": 1})


@pytest.mark.parametrize(("make", "kind"), [(image, "pass"), (text, "fail")])
def test_markdown_and_terminal_are_the_golden_ones(make: Any, kind: str, golden: Any) -> None:
    found = markdown.render(make())
    assert found == golden(f"report_{kind}.md", found)
    found = printed(make())
    assert found == golden(f"terminal_{kind}.txt", found)


def test_stages_have_a_table_of_their_own_in_markdown_and_leave_the_terminal_as_it_is(golden: Any) -> None:
    found = markdown.render(staged())
    assert found == golden("report_stages.md", found)
    assert printed(staged()) == printed(image())


def test_a_stage_that_trained_shows_its_loss_as_a_line_and_not_as_numbers() -> None:
    source = html.render(staged())
    assert source.count('<svg class="curve"') == 1
    assert "unet loss 1.80 at step 10 → 0.0115 at step 490, logarithmic" in source
    assert "rank 4" in source
    assert "[10," not in source


def chosen(why: str = "differs from torch by more than allowed") -> Comparison:
    """`image()` with a stage that tried three engines for its denoiser."""
    row = {"milliseconds": 2.5, "times torch": 4.0, "noise": 0.011, "difference": 2e-6, "why not": ""}
    torch = {**row, "engine": "torch", "milliseconds": 10.0, "times torch": 1.0, "difference": 0.0}
    far = {**row, "engine": "x int8", "milliseconds": None, "times torch": None, "noise": None, "why not": why}
    tried = [{**row, "engine": "x float32"}, torch, far]
    stage = {**image().stages[0], "id": "fastest", "facts": {"unet kept": "x float32", "unet tried": tried}}
    return replace(image(), stages=(stage,))


def test_the_engines_that_a_stage_tried_have_a_table_in_both_reports() -> None:
    reported = markdown.render(chosen())
    assert "| engine of unet | time a call | × torch | noise | difference to torch |  |" in reported
    assert "| x float32 | 2.50 ms | 4.00× | ±1.1% | 2.0e−06 | kept |" in reported
    assert "| x int8 | – | – | – | 2.0e−06 | differs from torch by more than allowed |" in reported
    source = html.render(chosen())
    assert "unet: kept x float32." in source
    assert "milliseconds" not in source
    assert Page(source).open == []
    assert "<img src" not in html.render(chosen("<img src=x>")).split("Engines tried")[1].split("</table>")[0]


def test_stages_are_drawn_between_the_scores_and_their_table() -> None:
    source = html.render(staged())
    titles = re.findall("<h2>([^<]+)</h2>", source)
    assert titles[2:5] == ["Speed against quality", "What each stage gave and cost", "Stages"]
    assert Page(source).open == []
    assert "Speed against quality" not in html.render(image())


def test_markdown_cells_cannot_break_the_table_or_bring_markup() -> None:
    hostile = "a\\|b | c\n| d | <img src=x> `x` **b** [l](http://x) @all"
    page = markdown.render(replace(image(), rows=(replace(image().rows[0], title=hostile),), stages=()))
    line = next(line for line in page.splitlines() if line.startswith("| a"))
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 7
    assert "<img" not in page
    assert not re.search(r"(?<!\\)[`\[]|http://|@all", line)


def test_a_comparison_prints_what_a_run_ends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compress.text(text()) == (shown := printed(text(), width=120))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert compress.text(text()) == shown
    assert (
        repr(text())
        == f"<comparison {text().name}: {text().status}, {len(text().rows)} metrics; compress.text tells more>"
    )


def test_terminal_shows_markup_and_escape_codes_as_text() -> None:
    shown = printed(replace(image(), name="[bold]x[/bold] \x1b[31mred"))
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown
    assert "\x1b[32m✓ pass" in printed(image(), terminal_like=True)


def test_terminal_tells_what_held_a_gate_back_and_where_the_report_lies() -> None:
    shown = printed(text(), 200)
    assert "within 1%, both sides: [0.0712, 0.1598] straddles the margin; about 3100 units would decide it" in shown
    assert "FAIL: a gate failed" in shown
    assert "report: runs/digits/report.html" in printed(image())


def test_junit_counts_failures_and_open_gates() -> None:
    suite = ElementTree.fromstring(junit.render(text()))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "1")
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases == {"latency: at least 1.5×": ["failure"], "perplexity: within 1%, both sides": ["error"]}
    assert all(len(case) == 0 for case in ElementTree.fromstring(junit.render(image())))


MARGINS = [
    ("latency", Gate(speedup=2.0), 2.0, math.inf),
    ("latency", Gate(worse_by="25%"), 0.8, math.inf),
    ("size", Gate(within="20%"), 1 / 1.2, 1 / 0.8),
    ("throughput", Gate(worse_by="10%"), 0.9, math.inf),
    ("perplexity", Gate(within="1%"), -0.5, 0.5),
    ("perplexity", Gate(worse_by=0.25), -math.inf, 0.25),
    ("digits_read", Gate(worse_by=0.01), -0.01, math.inf),
    ("peak_memory", Gate(worse_by=50), 0.5, math.inf),
]


@pytest.mark.parametrize(("name", "gate", "low", "high"), MARGINS)
def test_plotted_margins_are_the_judged_ones(name: str, gate: Gate, low: float, high: float) -> None:
    """The zone holds an interval just inside it exactly when the gate passes it."""
    metric, baseline = find_metric(name), exact(50.0)

    def verdict(least: float, most: float) -> Verdict:
        return judge(gate, metric, baseline, Estimate((least + most) / 2, least, most, 10), None)

    judged = verdict(1.0, 1.0)
    row = Row(
        name, name, metric.unit, metric.better, metric.compared, baseline, baseline, exact(1.0), judged, gate=gate
    )
    found = allowed_of(row)
    assert found is not None
    assert found == pytest.approx((low, high))
    inside = (low if math.isfinite(low) else high - 1) + 1e-9, (high if math.isfinite(high) else low + 1) - 1e-9
    assert verdict(*inside).status == "pass"
    for edge in filter(math.isfinite, (low, high)):
        assert verdict(edge - 1e-6, edge + 1e-6).status == "inconclusive"


def test_a_row_without_a_gate_has_no_zone() -> None:
    assert allowed_of(replace(image().rows[0], gate=None)) is None


def test_a_gate_on_the_candidates_own_value_is_drawn_where_its_difference_reaches_it() -> None:
    row = replace(image().rows[0], compared="difference", better="higher", baseline=exact(50.0))
    assert allowed_of(replace(row, gate=Gate(at_least=30))) == (-20, math.inf)
    assert allowed_of(replace(row, gate=Gate(at_most=60))) == (-math.inf, 10)
    time = replace(row, compared="ratio", better="lower")
    assert allowed_of(replace(time, gate=Gate(at_most=25))) == (2.0, math.inf)


def test_forest_draws_rows_with_an_interval_inside_the_image() -> None:
    odd = (difference(Estimate(math.nan, math.nan, math.nan, 0)), latency(Estimate(0.0, 0.0, 0.0, 1)))
    drawn = plots.forest(replace(text(), rows=text().rows + odd))
    assert drawn.count("<svg") == 3
    assert drawn.count('class="zone"') == 2
    assert all(0 <= float(at) <= 100 for at in re.findall(r'(?:x1|x2|cx|x|width)="([-\d.]+)%"', drawn))


def test_difference_of_images_is_absolute() -> None:
    one, other = np.array([[[10, 200, 0]]], np.uint8), np.array([[[250, 100, 0]]], np.uint8)
    assert plots.difference(one, other).tolist() == [[[240, 100, 0]]]


def test_html_stands_alone_and_says_the_verdict_first() -> None:
    source = html.render(image())
    page = Page(source)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all((value or "").startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert not [value for name, value in page.attributes if name == "href"]
    assert 0 < page.text.index("PASS") < page.text.index("Is it faster?") < page.text.index("Scores")
    assert page.tags.count("img") == 9
    assert source.count('class="small"') == 9


def test_html_enlarges_only_small_images_by_pixels_and_leaves_out_impossible_differences() -> None:
    shown = image().images[0]
    large = replace(shown, baseline=np.zeros((300, 300, 3), np.uint8))
    source = html.render(replace(image(), images=(large,)))
    assert source.count("<img") == 2
    assert 'class="small"' not in source


def test_html_brightens_all_differences_by_one_stated_factor() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    faint, strong = black + np.uint8(5), black + np.uint8(50)
    images = (
        replace(image().images[0], unit_id="a", baseline=black, candidate=faint),
        replace(image().images[0], unit_id="b", baseline=black, candidate=strong),
    )
    source = html.render(replace(image(), images=images))
    assert source.count(">difference ×5<") == 2
    assert plots.data_uri(black + np.uint8(25)) in source
    assert plots.data_uri(black + np.uint8(250)) in source
    same = html.render(replace(image(), images=(replace(images[0], candidate=black),)))
    assert plots.data_uri(black) in same


def test_html_marks_the_word_where_completions_part() -> None:
    source = html.render(text())
    assert "two <mark>numbers</mark> and" in source
    assert "two <mark>number</mark> lists," in source
    assert "They first differ at token 2." in source
    assert "They agree to the end." in source
    short = Completion("d", "p", "one two", "one", 1)
    source = html.render(replace(text(), completions=(short,)))
    assert "one<mark> two</mark>" in source
    assert 'one<mark title="ends here">∎</mark>' in source


HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["<script>alert(1)</script>", '"><img src=x onerror=y>', "]]>&amp;", "' onload='x", "</style><b>"]),
)


def hostile(value: str) -> Comparison:
    row = replace(
        text().rows[0],
        metric=value, title=value, unit=value, verdict=Verdict("fail", value, value), contrast=Estimate(1.2, 1.1, 1.3, 9, value),
    )  # fmt: skip
    number = Estimate(1.2, 1.1, 1.3, 9, value)
    beside = Beside(value, value, number, number, number, Verdict("fail", value, value), replace(number, note=value))
    contrast = Contribution(value, value, Estimate(1.2, 1.1, 1.3, 9, value), Estimate(1.2, 1.1, 1.3, 9, value))
    return replace(
        image(),
        steps=(Step("", 9), Step(value, 8, contrast, (contrast,), value)),
        name=value, rows=(row, replace(row, compared="difference")), recipe=value, warnings=(value,), machine={"processor": value, "libraries": {value: value}},
        stages=({**image().stages[0], "id": value, "facts": {value: value, f"{value} loss": [[1, 2.0], [2, 1.0]]}},),
        images=(replace(image().images[0], caption=value),),
        completions=(Completion(value, value, value + "a", value + "b", 1),),
        baseline=Side(value, value, value, {value: value}),
        controls=(Control(value, Side(value, value, value), (beside,)),),
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(HOSTILE)
def test_strings_of_users_are_harmless_in_every_file(value: str) -> None:
    comparison = hostile(value)
    page, plainly = Page(html.render(comparison)), Page(html.render(hostile("x")))
    assert page.tags.count("script") == 0
    assert [tag for tag in page.tags if tag not in ("small", "details", "summary", "pre")] == [
        tag for tag in plainly.tags if tag not in ("small", "details", "summary", "pre")
    ]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"<(?!!)", markdown.render(comparison))
    assert len(ElementTree.fromstring(junit.render(comparison)).findall("testcase")) == len(comparison.rows) == 2
    jsonschema.validate(result.to_dict(comparison), result.schema())
    assert "\x1b" not in printed(comparison)


def test_write_leaves_four_files_and_nothing_else(tmp_path: Path) -> None:
    write(replace(image(), name="lone \udc80 surrogate"), tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "junit.xml",
        "report.html",
        "report.md",
        "result.json",
    ]
    data = json.loads((tmp_path / "new" / "result.json").read_text(encoding="utf-8"))
    assert data["name"] == "lone \udc80 surrogate"
    ElementTree.parse(tmp_path / "new" / "junit.xml")


def test_write_keeps_the_old_files_when_a_new_one_cannot_be_made(tmp_path: Path) -> None:
    write(image(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    broken = replace(image(), name="other", stages=({"id": "no size"},))
    with pytest.raises(KeyError):
        write(broken, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_empty_comparison_still_renders() -> None:
    side = Side("a", "", "")
    bare = Comparison("bare", "text_generation", side, side, (), {}, "")
    assert "MEASURED: no gates were set" in markdown.render(bare)
    assert Page(html.render(bare)).open == []
    assert "MEASURED" in printed(bare)
    assert len(ElementTree.fromstring(junit.render(bare))) == 0


def test_a_table_of_runs_shows_every_quality_metric_the_gated_ones_first() -> None:
    plain = replace(difference(Estimate(0.5, 0.4, 0.6, 64)), metric="kl", gate=None, verdict=Verdict("not gated"))
    gated = text()
    free = replace(gated, name="free", rows=(plain,))
    headings, cells = runs_table.columns([free, gated])
    assert headings == ("run", "verdict", "speed", "weights", "perplexity", "kl", "processor")
    assert cells[0][4] == cells[1][5] == "–"
    assert cells[0][5].startswith("+0.5")
    assert cells[0][5].endswith("–")  # and no verdict


def test_runs_of_one_recipe_are_reported_apart_by_their_folders() -> None:
    one, other = (replace(text(), directory=f"runs/{name}") for name in ("a", "b"))
    alone = replace(text(), name="alone", directory="runs/c")
    assert runs_table.labels([one, other, alone]) == [f"{one.name} (a)", f"{one.name} (b)", "alone"]
    assert [row["run"] for row in runs_table.to_dicts([one, alone])][:1] == [one.name]
    moved = replace(one, directory="elsewhere/a")
    assert runs_table.labels([one, moved]) == [f"{one.name} (runs/a)", f"{one.name} (elsewhere/a)"]


@pytest.mark.parametrize(
    ("cached", "facts", "state"),
    [
        (False, {}, "ran"),
        (True, {}, "cached"),
        (False, {"kept": True, "decision": "kept: 1.3×"}, "ran"),
        (True, {"kept": False, "decision": "not kept: 0.8×"}, "cached, not kept"),
    ],
)
def test_a_stage_that_was_not_kept_is_called_so(cached: bool, facts: dict[str, object], state: str) -> None:
    from evaluation.report.stage_settings import state_of

    assert state_of({"id": "int8", "cached": cached, "facts": facts}) == state


def test_what_a_step_was_given_has_whether_it_is_kept(tmp_path: Path) -> None:
    from compress.recipe.reading import read_recipes

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "schema: 1\nname: r\nmodel: zoo://docs-llama\nstages:\n"
        "  - build.openvino: {precision: int8_weights, keep: if_faster}\n"
    )
    assert read_recipes(recipe)[0].given("build.openvino") == {"precision": "int8_weights", "keep": "if_faster"}
