"""`make calibration`: how often each gate passes, fails or stays inconclusive, simulated on the samples of finished runs.

Rule 13 of the evaluation says what a gate owes its reader: a model at the margin passes at most one time in forty and fails at
most one time in forty, an unchanged model passes all quality gates four times in five at the n that the report recommends, and
one at twice the margin fails four times in five. Here a run's own units are the population, its candidate is made as much worse
as is wanted, and the evaluator's own intervals and verdicts look at units drawn from it. Writes `reports/calibration.md` and
`reports/calibration.svg`.

python -m tests.programs.calibration [run folder ...]
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from evaluation.report.plots import tick
from tests.programs.simulation import CHANCE, CURVE, LARGE, MULTIPLES, Seen, Study, often, seldom, study

ROOT = Path(__file__).parents[2]
RUNS = (ROOT / "reports/quickstart", ROOT / "reports/text-quickstart")
STATUSES = ("pass", "fail", "inconclusive")


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or list(RUNS)
    absent = [str(folder) for folder in folders if not (folder / "result.json").is_file()]
    if absent:
        sys.exit(
            f"no finished run in {', '.join(absent)}: name the folders of runs, python -m tests.programs.calibration RUN ..."
        )
    studies = [study(folder) for folder in folders]
    (ROOT / "reports/calibration.svg").write_text(image(studies))
    (ROOT / "reports/calibration.md").write_text(page(studies))


PAGE = """# How often gates are wrong, by simulation

![Pass, fail and inconclusive against the true change, a panel a gate](calibration.svg)

{head}

Shares are followed by their standard error over the draws; "kept" says whether the promise is compatible with them
(a binomial test at {chance:g}).

## At the margin: passes at most 2.5%, fails at most 2.5%

{margin}

## No change: all quality gates pass at least 80%, at the n that the report recommends

{together}

## At twice the margin: fails at least 80%

{twice}

Quality gates at the n that the report recommends for passing an unchanged model; speeds at the run's own number of blocks. The
last column is an n at which the gate does fail four times in five: the same where that suffices, – where none was found.

## How it was simulated

A draw takes units of the run with replacement (prompts, documents, blocks), the same for all gates of a run, and swaps baseline and
candidate of each with probability ½: the truth is then no change, and pairs are as far apart as they were. The sides of a speed are
not swapped. The candidate is then made worse until the true contrast is the wanted one, and the metric's own `contrast` and the
evaluator's own `judge` see what was drawn, a relative margin being taken of the drawn baseline.

* **Means**: the same number is added to every unit.
* **Shares**: a unit is lost whole, at the rate that costs as much as is wanted. Where both sides of a run were all right, an unchanged
  model is all right too.
* **Perplexity**: one factor on the nats of every document.
* **KID**: every image's features move the way in which generated ones already differ from real ones, on their sphere, by what makes
  the population's KID that much larger. That truth is exact and no estimate: the population is the run's units, so its discrepancy is
  a finite sum. It counts a unit against itself, because two draws may be the same unit; for that truth, doubled units are no bias.
* **Speeds**: one factor on every block. One margin is 10% of speed, and the margin itself what the gate asks: "no margin" is 1.1 times
  that, two margins that ÷ 1.1.

A curve's points rest on {curve} draws at the run's n, the second and third table on {large}. Units of a run stand for all units
there are: what a population of a few blocks or documents does not hold, its draws do not show.

To run it again: `make calibration`, or `python -m tests.programs.calibration RUN ...` with the folders of runs.
"""


def page(studies: Sequence[Study]) -> str:
    margin, twice = (
        [("run", "gate", "n", "draws", "passes", "fails", "kept")],
        [("run", "gate", "n", "fails", "kept", "n for 80%")],
    )
    for one in studies:
        for seen in one.seen:
            for side, counts in zip(("falling", "rising"), seen.margin, strict=False):
                title = seen.case.title + (f" ({side})" if seen.case.sides == 2 else "")
                kept = seldom(counts, "pass") and seldom(counts, "fail")
                cells = (
                    str(seen.case.n),
                    f"{counts.total():,}",
                    share(counts, "pass"),
                    share(counts, "fail"),
                    yes(kept),
                )
                margin.append((one.name, title, *cells))
            caught = yes(often(seen.twice, "fail"))
            reported = (str(seen.advised), share(seen.twice, "fail"), caught, str(seen.enough or "–"))
            twice.append((one.name, seen.case.title, *reported))
    passed = [(s.name, str(s.advised), share(s.together, "pass"), yes(often(s.together, "pass"))) for s in studies]
    return PAGE.format(
        head=__doc__.split("\n\n")[1].split(" Writes")[0],
        chance=CHANCE,
        margin=table(margin),
        together=table([("run", "n", "all pass", "kept"), *passed]),
        twice=table(twice),
        curve=CURVE,
        large=LARGE,
    )


def share(seen: Counter[str], status: str) -> str:
    found = seen[status] / seen.total()
    return f"{found:.1%} ± {math.sqrt(found * (1 - found) / seen.total()):.1%}"


def yes(kept: bool) -> str:
    return "yes" if kept else "**no**"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], ("---",) * len(rows[0]), *rows[1:]))


WIDE, HIGH, ACROSS = 320, 246, 3  # a panel, and how many stand in a row
LEFT, TOP, RIGHT, BOTTOM = 44, 46, 304, 190  # its plot
STYLE = """svg { color-scheme: light dark; --ink: #1b1d21; --paper: #fff; --line: #d9dce1; --good: #18794e; --bad: #c62a2f;
  --open: #8a5a00; font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8eb; --paper: #16181c; --line: #383c44; --good: #4cc38a;
  --bad: #ff7a80; --open: #f0c000; } }
text { fill: var(--ink); } .quiet { opacity: .75; } .paper { fill: var(--paper); } .rule { stroke: var(--line); }
.edge { stroke: var(--ink); stroke-dasharray: 3 3; opacity: .6; } .title { font-weight: 600; }
polyline { fill: none; stroke: currentColor; stroke-width: 2; } polygon { fill: currentColor; opacity: .18; }
.pass { color: var(--good); } .fail { color: var(--bad); } .inconclusive { color: var(--open); }
.inconclusive polyline { stroke-dasharray: 6 4; } .fail polyline { stroke-dasharray: 2 2; }"""


def image(studies: Sequence[Study]) -> str:
    """The curves, a panel a gate; it brings its own paper, for a page may be lighter or darker than its reader's system."""
    panels = [panel(one.name, seen) for one in studies for seen in one.seen] + [legend()]
    high = HIGH * math.ceil(len(panels) / ACROSS)
    placed = (
        f'<g transform="translate({WIDE * (i % ACROSS)} {HIGH * (i // ACROSS)})">{p}</g>' for i, p in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE * ACROSS} {high}" role="img">'
        f"<title>How often each gate passes, fails or stays inconclusive</title><style>{STYLE}</style>"
        f'<rect class="paper" width="100%" height="100%"/>{"".join(placed)}</svg>\n'
    )


def panel(name: str, seen: Seen) -> str:
    case = seen.case
    parts = [text(LEFT, 18, case.title, "title"), text(LEFT, 34, f"{name}, n = {case.n}", "quiet")]
    for level in (0, 0.5, 1):
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{down(level)}" y2="{down(level)}"/>')
        parts.append(text(LEFT - 6, down(level) + 4, f"{level:.0%}", "quiet", "end"))
    parts.append(f'<line class="edge" x1="{along(1)}" x2="{along(1)}" y1="{TOP}" y2="{BOTTOM}"/>')
    for multiple in (0, 1, 2):
        value = tick(case.truth(multiple) + 0.0) + ("×" if case.metric.compared == "ratio" else "")
        parts.append(text(along(multiple), BOTTOM + 16, ("0", "1 margin", "2")[multiple], "", "middle"))
        parts.append(text(along(multiple), BOTTOM + 31, value, "quiet", "middle"))
    return "".join(parts) + "".join(curve(seen.curve, status) for status in STATUSES)


def curve(counts: Sequence[Counter[str]], status: str) -> str:
    """A share along the true change, in a band of two standard errors."""
    at = [
        (along(multiple), seen[status] / seen.total(), seen.total())
        for multiple, seen in zip(MULTIPLES, counts, strict=True)
    ]
    off = [2 * math.sqrt(p * (1 - p) / n) for _, p, n in at]
    above = [(x, min(1.0, p + e)) for (x, p, _), e in zip(at, off, strict=True)]
    below = [(x, max(0.0, p - e)) for (x, p, _), e in zip(at, off, strict=True)]
    band, line = (" ".join(f"{x:.1f},{down(y):.1f}" for x, y in p) for p in (above + below[::-1], [a[:2] for a in at]))
    return f'<g class="{status}"><polygon points="{band}"/><polyline points="{line}"/></g>'


def legend() -> str:
    lines = "".join(
        f'<g class="{status}"><polyline points="{LEFT},{TOP + 24 * i} {LEFT + 34},{TOP + 24 * i}"/></g>'
        + text(LEFT + 44, TOP + 24 * i + 4, status)
        for i, status in enumerate(STATUSES)
    )
    message = ("Share of draws at the run’s own n, by the true", "change in margins; bands: two standard errors.")
    return lines + "".join(text(LEFT, TOP + 88 + 16 * i, line, "quiet") for i, line in enumerate(message))


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def along(multiple: float) -> float:
    return LEFT + (RIGHT - LEFT) * multiple / MULTIPLES[-1]


def down(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


if __name__ == "__main__":
    main()
