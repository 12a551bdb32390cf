"""The report as a pull-request comment."""

from __future__ import annotations

from evaluation.report import words
from evaluation.scores import Comparison


def render(comparison: Comparison) -> str:
    lines = [f"## {_safe(comparison.name)}: {words.VERDICTS[comparison.status]}", ""]
    lines += [f"* **{question}** {_safe(answer)}" for question, answer in words.questions(comparison)]
    lines += [
        "",
        "| metric | baseline | candidate | difference or ratio, 95% | verdict | gate |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in comparison.rows:
        cells = [
            row.title,
            words.score(row.baseline, row.unit),
            words.score(row.candidate, row.unit),
            words.contrast(row),
        ]
        cells += [words.mark(row), row.verdict.gate + (f" ({row.verdict.why})" if row.verdict.why else "")]
        lines.append("| " + " | ".join(map(_safe, cells)) + " |")
    if comparison.stages:
        lines += ["", "| stage | | seconds | MB |", "|---|---|---:|---:|"]
    for stage in comparison.stages:
        state = "cached" if stage["cached"] else "ran"
        lines.append(f"| {_safe(stage['id'])} | {state} | {stage['seconds']:.1f} | {stage['size_bytes'] / 1e6:.1f} |")
    lines += ["", f"Baseline: {_safe(comparison.baseline.engine)}. Candidate: {_safe(comparison.candidate.engine)}."]
    lines += [f"Machine: {_safe(words.machine(comparison))}.", *(f"Warning: {_safe(w)}" for w in comparison.warnings)]
    return "\n".join(lines) + "\n"


def _safe(text: object) -> str:
    """Text that can neither break the table nor bring markup with it."""
    found = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return found.replace("|", "\\|").replace("`", "'").replace("\n", " ")
