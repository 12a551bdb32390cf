"""The report as one file that needs nothing else: no script, no font, no network. Verdict first."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from evaluation.report import plots, words
from evaluation.scores import Comparison

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(comparison: Comparison) -> str:
    parts = [
        _head(comparison),
        _scores(comparison),
        _section("Speed, size and memory: baseline to candidate", plots.speedups(comparison)),
    ]
    parts += [_stages(comparison), _pictures(comparison), _completions(comparison), _provenance(comparison)]
    return "\n".join(p for p in parts if p) + "\n</body></html>\n"


def _head(comparison: Comparison) -> str:
    answers = "".join(f"<dt>{q}</dt><dd>{escape(a)}</dd>" for q, a in words.questions(comparison))
    warnings = "".join(f'<p class="inconclusive">Warning: {escape(w)}</p>' for w in comparison.warnings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(comparison.name)}: {comparison.status}</title><style>{STYLE.read_text()}</style></head><body>"
        f"<h1>{escape(comparison.name)}</h1>"
        f'<p><span class="verdict {comparison.status.split()[-1]}">{words.VERDICTS[comparison.status]}</span></p>'
        f"<dl>{answers}</dl>{warnings}"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _table(headings: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _scores(comparison: Comparison) -> str:
    rows = []
    for row in comparison.rows:
        notes = "; ".join(n for n in (row.verdict.gate, row.verdict.why, row.candidate.note) if n)
        needed = f"; needs about n = {row.verdict.n_needed}" if row.verdict.n_needed else ""
        rows.append(
            f"<tr><td>{escape(row.title)}<br><small>{escape(notes + needed)}</small></td>"
            f'<td class="n">{escape(words.score(row.baseline, row.unit))}</td><td class="n">{escape(words.score(row.candidate, row.unit))}</td>'
            f'<td class="n">{escape(words.contrast(row))}</td>'
            f'<td class="{row.verdict.status.split()[-1]}">{escape(words.mark(row))}</td></tr>'
        )
    return _section("Scores", _table(("metric", "baseline", "candidate", "difference or ratio, 95%", "verdict"), rows))


def _stages(comparison: Comparison) -> str:
    rows = []
    for stage in comparison.stages:
        facts = ", ".join(f"{k} {v}" for k, v in dict(stage.get("facts", {})).items())
        state = "cached" if stage["cached"] else "ran"
        rows.append(
            f"<tr><td>{escape(str(stage['id']))}<br><small>{escape(facts)}</small></td><td>{state}</td>"
            f'<td class="n">{stage["seconds"]:.1f} s</td><td class="n">{stage["size_bytes"] / 1e6:.1f} MB</td></tr>'
        )
    return _section("Stages", _table(("stage", "", "time", "size of the artifact"), rows)) if rows else ""


def _pictures(comparison: Comparison) -> str:
    cells = []
    for p in comparison.pictures:
        shown = [("baseline", p.baseline), ("candidate", p.candidate)]
        if p.baseline.shape == p.candidate.shape:
            shown.append(("difference", plots.difference(p.baseline, p.candidate)))
        images = "".join(f'<img src="{plots.data_uri(picture)}" alt="{name}">' for name, picture in shown)
        cells.append(f"<figure><div>{images}</div><figcaption>{escape(p.caption)}</figcaption></figure>")
    grid = f'<div class="grid">{"".join(cells)}</div>' if cells else ""
    return _section("Same noise: baseline | candidate | difference", grid)


def _completions(comparison: Comparison) -> str:
    parts = []
    for c in comparison.completions:
        where = (
            "agree to the end" if c.first_divergent_token < 0 else f"first differ at token {c.first_divergent_token}"
        )
        parts.append(
            f"<pre>{escape(c.prompt)}\n<b>baseline</b>  {escape(c.baseline)}\n<b>candidate</b> {escape(c.candidate)}\n<mark>{where}</mark></pre>"
        )
    return _section("Greedy completions", "".join(parts))


def _provenance(comparison: Comparison) -> str:
    sides = "".join(
        f"<dt>{s.name}</dt><dd>{escape(s.engine)}<br><small>{escape(json.dumps(dict(s.call)))} · {escape(s.digest[:16])}</small></dd>"
        for s in (comparison.baseline, comparison.candidate)
    )
    libraries = ", ".join(f"{k} {v}" for k, v in dict(comparison.machine.get("libraries", {})).items())
    recipe = (
        f"<details open><summary>Recipe</summary><pre>{escape(comparison.recipe)}</pre></details>"
        if comparison.recipe
        else ""
    )
    machine = f"<p>{escape(words.machine(comparison))}<br><small>{escape(libraries)}</small></p>"
    return _section("What was compared, and on what", f"<dl>{sides}</dl>{machine}{recipe}")
