"""The report as one file that needs nothing else: no script, no font, no network. Verdict first."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.comparison import Comparison, Completion, Image, Row
from evaluation.report import controls, engine_trials, formatting, loss_curve, plots, sensitivity, tradeoff, waterfall
from evaluation.report.result import plain
from evaluation.report.stage_settings import as_given, state_of
from evaluation.report.summary import questions

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SMALL = 256  # pixels: below this, enlarging shows the pixels there are and invents none
TEXT = 160  # characters of an item that a table shows
_e = formatting.escaped
HEADINGS = ("metric", "baseline", "candidate", "difference or ratio, 95%", "verdict")


def render(comparison: Comparison) -> str:
    """A whole page; every string of the comparison is escaped."""
    parts = (
        _head(comparison),
        _section("Scores", _scores(comparison)),
        _section("Beside the controls", _controls(comparison)),
        _section("Each interval against its margin", _forest(comparison)),
        _section("Speed against quality", _tradeoff(comparison)),
        _section("What each stage gave and cost", _waterfall(comparison)),
        _section("Stages", _stages(comparison)),
        _section("Engines tried", _trials(comparison)),
        _section("What quantizing each layer alone costs", _sensitivity(comparison)),
        _section("Same prompt, same noise", _images(comparison)),
        _section("What came out worst", _worst(comparison)),
        _section(
            "Greedy completions, those that part first in front", "".join(map(_completion, comparison.completions))
        ),
        _section("What was compared, and on what", _provenance(comparison)),
        _section("Your model, and how to call it", _handed(comparison)),
    )
    return "\n".join(p for p in parts if p) + "\n</body></html>\n"


def _head(comparison: Comparison) -> str:
    answers = "".join(f"<dt>{_e(q)}</dt><dd>{_e(a)}</dd>" for q, a in questions(comparison))
    warnings = "".join(f"<li>{_e(w)}</li>" for w in comparison.warnings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{_e(comparison.name)}: {comparison.status}</title>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><h1>{_e(comparison.name)}</h1>"
        f'<p><span class="verdict {_kind(comparison.status)}">{formatting.VERDICTS[comparison.status]}</span></p>'
        f'<dl class="answers">{answers}</dl>'
        + (f'<div class="warnings"><b>Warnings</b><ul>{warnings}</ul></div>' if warnings else "")
    )


def _kind(status: str) -> str:
    return status.split()[-1]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Cells are markup; each carries its heading, which a phone shows in front of it."""
    head = "".join(f"<th>{h}</th>" for h in headings)
    body = "".join(
        "<tr>" + "".join(f'<td data-label="{h}">{c}</td>' for h, c in zip(headings, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _scores(comparison: Comparison) -> str:
    return _table(HEADINGS, [_cells(row) for row in comparison.rows]) if comparison.rows else ""


def _cells(row: Row) -> tuple[str, ...]:
    notes = dict.fromkeys(
        n for n in (row.verdict.gate, formatting.reason(row), row.contrast.note, row.candidate.note) if n
    )
    small = f"<small>{_e('; '.join(notes))}</small>" if notes else ""
    count = f"<small>n = {row.contrast.n}</small>" if row.contrast.n > 1 else ""
    return (
        f"<span>{_e(row.title)}{small}</span>",
        *map(_e, formatting.scores(row)),
        f'<span class="n">{_e(formatting.contrast(row))}{count}</span>',
        f'<span class="{_kind(row.verdict.status)}">{_e(formatting.mark(row))}</span>',
    )


def _controls(comparison: Comparison) -> str:
    """A table a control: what it is itself, and how far the candidate is ahead."""
    parts = []
    for control in comparison.controls:
        rows = []
        for found, (title, score, own, over, mark, gate) in controls.table(comparison, control):
            small = f"<small>{_e(gate)}</small>" if gate else ""
            verdict = f'<span class="{_kind(found.verdict.status)}">{_e(mark)}</span>'
            ahead = f'<span class="n">{_e(over)}</span>'
            rows.append((f"<span>{_e(title)}{small}</span>", _e(score), _e(own), ahead, verdict))
        parts.append(f"<p>{_e(controls.line(comparison, control))}</p>{_table(controls.HEADINGS, rows)}")
    return "".join(parts)


def _forest(comparison: Comparison) -> str:
    drawn = plots.forest(comparison)
    key = "Dot and bar: the value and its 95% interval. Shaded: what the gate allows. Dashed: no change. "
    return drawn and f'<p class="quiet">{key}Ratios above 1 are better for the candidate.</p>{drawn}'


def _tradeoff(comparison: Comparison) -> str:
    drawn = tradeoff.plot(comparison)
    key = (
        "Cross: a model and its 95% intervals against the baseline. Shaded: what the gates allow. Line: the Pareto front, "
        "which no other model here beats in both. "
    )
    return drawn and f'<p class="quiet">{key}{_sample(comparison)}</p>{drawn}'


def _waterfall(comparison: Comparison) -> str:
    drawn = waterfall.waterfall(comparison)
    key = (
        "Bar: the speed-up against the baseline, from before the stage to after it, logarithmic; line across its end: 95% "
        "interval; grey: no change is inside the stage's own interval. Beside it: what this stage alone gave and cost, against the stage before. "
    )
    return drawn and f'<p class="quiet">{key}{_sample(comparison)}</p>{drawn}'


def _sample(comparison: Comparison) -> str:
    units = waterfall.units(comparison)
    return f"Stages are scored on the first {units} items, the candidate's verdict on all." if units else ""


def _fact(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _stages(comparison: Comparison) -> str:
    rows: list[tuple[str, ...]] = []
    for stage in comparison.stages:
        facts = dict(stage.get("facts", {}))
        curves = {name: found for name, fact in facts.items() if (found := loss_curve.read(name, fact)) is not None}
        plain = {
            n: f
            for n, f in facts.items()
            if n not in curves and not engine_trials.is_trials(f) and not sensitivity.is_table(f)
        }
        others = ", ".join(f"{name} {_fact(fact)}" for name, fact in plain.items())
        small = f"<small><code>{_e(given)}</code></small>" if (given := as_given(stage)) else ""
        small += f"<small>{_e(others)}</small>" if others else ""
        small += "".join(loss_curve.draw(name, found) for name, found in curves.items())
        rows.append(
            (
                f"<span>{_e(stage['id'])}{small}</span>",
                state_of(stage),
                f"{stage['seconds']:.1f} s",
                formatting.size(stage["size_bytes"]),
            )
        )
    return _table(("stage", "state", "time", "size"), rows) if rows else ""


def _trials(comparison: Comparison) -> str:
    drawn = []
    for found in engine_trials.read(comparison.stages):
        rows = [tuple(map(_e, row)) for row in found.rows]
        key = f"{found.component or found.stage}: kept {found.kept}. Each was timed in turns on the model's own calls."
        drawn.append(f'<p class="quiet">{_e(key)}</p>{_table(engine_trials.HEADINGS, rows)}')
    return "".join(drawn)


def _sensitivity(comparison: Comparison) -> str:
    drawn = []
    for table in sensitivity.read(comparison.stages):
        fewest = min(table.bits)
        drawn.append(
            f'<p class="quiet">{_e(sensitivity.reported(table))} Logarithmic; bar: {fewest} bits, ticks: each width.</p>'
        )
        drawn.append(sensitivity.bars(table))
        if shown := sensitivity.heat(table):
            key = f"The same layers at {fewest} bits, in the model's order, at each timestep from noise to image; darker costs more."
            drawn += [f'<p class="quiet">{key}</p>', shown]
    return "".join(drawn)


def _images(comparison: Comparison) -> str:
    differences = {
        p.unit_id: plots.difference(p.baseline, p.candidate)
        for p in comparison.images
        if p.baseline.shape == p.candidate.shape
    }
    # Small differences are black to the eye: all are brightened by one stated factor, so that they stay comparable.
    factor = max(1, 255 // max(1, *(int(d.max(initial=0)) for d in differences.values()), 0))
    cells = []
    for p in comparison.images:
        shown = [*p.given.items(), ("original", p.baseline), ("compressed", p.candidate)]
        if p.unit_id in differences:
            bright = (differences[p.unit_id] * np.uint8(factor)).astype(np.uint8)
            shown.append((f"difference ×{factor}" if factor > 1 else "difference", bright))
        cells.append(_figure(p, shown))
    # What a side was given stands in one row with what it made of it, and such rows are longer.
    kind = "grid given" if any(p.given for p in comparison.images) else "grid"
    return f'<div class="{kind}">{"".join(cells)}</div>' if cells else ""


def _figure(p: Image, shown: list[tuple[str, NDArray[np.uint8]]]) -> str:
    kind = ' class="small"' if max(p.baseline.shape[:2]) < SMALL else ""
    caption = _e(p.caption)
    images = "".join(
        f'<span><img{kind} src="{plots.data_uri(image)}" alt="{name}: {caption}">{name}</span>' for name, image in shown
    )
    why = f"<small>{_e(p.why)}</small>" if p.why else ""
    return f"<figure><div>{images}</div><figcaption>{caption}{why}</figcaption></figure>"


def _worst(comparison: Comparison) -> str:
    titles = {row.metric: row.title for row in comparison.rows}
    rows = [
        (
            f"<span>{_e(w.text[:TEXT] + '…' * (len(w.text) > TEXT) if w.text else w.unit_id)}</span>",
            _e(titles.get(w.metric, w.metric)),
            formatting.number(w.baseline),
            formatting.number(w.candidate),
        )
        for w in comparison.worst
    ]
    return _table(("item", "metric", "baseline", "candidate"), rows) if rows else ""


def _completion(c: Completion) -> str:
    if c.first_divergent_token < 0:
        where, sides = "They agree to the end.", (_e(c.baseline), _e(c.candidate))
    else:
        where = f"They first differ at token {c.first_divergent_token}."
        start = _parting(c.baseline, c.candidate)
        sides = _marked(c.baseline, start), _marked(c.candidate, start)
    return (
        f'<div class="text"><p><b>prompt</b> {_e(c.prompt)}</p><dl><dt>original</dt><dd>{sides[0]}</dd>'
        f"<dt>compressed</dt><dd>{sides[1]}</dd></dl><small>{where}</small></div>"
    )


def _parting(one: str, other: str) -> int:
    """Where two texts part: the start of the first word that differs. Tokens are not kept, words stand for them."""
    shorter = min(len(one), len(other))
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), shorter)
    if start < shorter and not (one[start].isspace() and other[start].isspace()):
        while start and not one[start - 1].isspace():
            start -= 1
    return start


def _marked(text: str, start: int) -> str:
    """Text with the word from the character `start` on marked, or its end."""
    if start >= len(text):
        return _e(text) + '<mark title="ends here">∎</mark>'
    found = re.compile(r"\s*\S+|\s+").match(text, start)
    end = found.end() if found else len(text)
    return f"{_e(text[:start])}<mark>{_e(text[start:end])}</mark>{_e(text[end:])}"


def _provenance(comparison: Comparison) -> str:
    sides = "".join(
        f"<dt>{_e(name)}</dt><dd>{_e(formatting.runs(comparison, s))}<small>{_e(json.dumps(plain(s.call), ensure_ascii=False))}"
        f" · {_e(s.digest[:16])}</small></dd>"
        for name, s in formatting.sides(comparison)
    )
    libraries = ", ".join(f"{k} {v}" for k, v in dict(comparison.machine.get("libraries", {})).items())
    machine = f"<dt>machine</dt><dd>{_e(formatting.machine(comparison))}<small>{_e(libraries)}</small></dd>"
    recipe = f"<details open><summary>Recipe</summary><pre>{_e(comparison.recipe)}</pre></details>"
    return f"<dl>{sides}{machine}</dl>{recipe if comparison.recipe else ''}"


def _handed(comparison: Comparison) -> str:
    found = comparison.handed
    if found is None:
        return ""
    note = f"<small>{_e(found.note)}</small>" if found.note else ""
    code = "\n".join(_e(line) for line in found.code)
    return f"<p><code>{_e(found.path)}</code>{note}</p><pre>{code}</pre>"
