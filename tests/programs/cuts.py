"""`make cuts`: 25% and 50% cuts in width and depth of the zoo's UNet and Llama, before and after distillation.

Runs the shipped recipes and writes `reports/cuts.md`. Theory promises the inverse of the floating-point operations a cut
leaves in its component; the fraction realised is what of that gain the whole model shows in eager PyTorch, measured interleaved with
it. More than all of it is realised where a block that goes takes calls with it that operations do not count; less where a narrower
layer keeps its calls, or where other components take their share of the time. Quality is the difference from the uncut model.

python -m tests.programs.cuts [steps of distillation] [folder]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import compress
from evaluation.comparison import Comparison, Step
from evaluation.report import formatting, result

ROOT = Path(__file__).parents[2]
RECIPES = ("image/narrow", "image/shallow", "text/narrow", "text/shallow")
RATIOS = (0.25, 0.5)
HEAD = (
    "cut",
    "asked",
    "granted",
    "parameters",
    "in theory",
    "measured",
    "realised",
    "quality after the cut",
    "quality after distillation",
)


def main() -> None:
    steps, folder = (*sys.argv[1:], *("300", "runs")[len(sys.argv) - 1 :])
    rows = []
    for name in RECIPES:
        for ratio in RATIOS:
            sets = (f"stages.0.ratio={ratio}", f"stages.1.steps={steps}")
            out = Path(folder) / f"{name.replace('/', '-')}-{ratio}"
            rows.append(row(name, ratio, found(out) or compress.run(ROOT / f"recipes/{name}.yaml", sets, out=out)))
    table = [HEAD, ("---",) * len(HEAD), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    head = __doc__.split("\n\npython")[0].replace("`make cuts`: ", "# ")
    reported = f"Distillation took {steps} steps; quality is that of the first 64 prompts or documents."
    (ROOT / "reports/cuts.md").write_text(f"{head}\n{reported}\n\n{text}\n")


def found(out: Path) -> Comparison | None:
    """What an earlier run left in its folder."""
    file = out / "result.json"
    return result.from_dict(json.loads(file.read_text())) if file.is_file() else None


def row(name: str, ratio: float, found: Comparison) -> tuple[str, ...]:
    facts = {key.split(" ")[-1]: value for key, value in found.stages[0]["facts"].items()}
    _, cut, taught = found.steps
    theory = 1 / facts["flops_kept"]
    assert cut.speed is not None
    speed = cut.speed.cumulative
    realised = (speed.value - 1) / (theory - 1) if theory > 1 else float("nan")
    return (
        name,
        f"−{ratio:.0%}",
        facts["granted"].partition("granted ")[2],
        f"−{1 - facts['parameters_kept']:.1%}",
        f"{theory:.2f}×",
        f"{speed.value:.2f}× [{speed.low:.2f}, {speed.high:.2f}]",
        f"{realised:.0%}",
        quality(found, cut),
        quality(found, taught),
    )


def quality(found: Comparison, step: Step) -> str:
    """Each gated metric's difference from the baseline, with its interval."""
    rows = {r.metric: r for r in found.rows}
    parts = [f"{c.title} {formatting.contrast_of(rows[c.metric], c.cumulative)}" for c in step.quality]
    return "; ".join([*parts, *filter(None, [step.note])])


if __name__ == "__main__":
    main()
