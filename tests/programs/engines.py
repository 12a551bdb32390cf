"""`make engines`: every engine and precision of the zoo's language model, its perplexity and its speed beside eager PyTorch.

Perplexity is that of the 200 held-out documents, as the difference from float32 with its 95% interval over
documents; decoding is measured interleaved with eager float32, 32 tokens of prompt and 64 written, one sequence. The roof is what the
machine reads from memory: a token needs every weight once, and a model this small fits into the processor's caches. OpenVINO computes in
float32 and keeps weights in the type they are stored in, bfloat16 here: hence the size of its float32.

python -m tests.programs.engines [folder]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

import compress
from compress.catalogue import Stage, find_stage, stage_names
from compress.errors import PareError
from compress.machine import deps
from compress.model.describing import describe
from compress.zoo import zoo_model
from evaluation.comparison import Comparison
from evaluation.report import formatting, result

ROOT = Path(__file__).parents[2]
HEAD = (
    "engine",
    "precision",
    "perplexity against float32",
    "decoding against eager",
    "tokens/s",
    "size",
    "of the roof",
)
RECIPE = """\
schema: 1
name: {name}
model: zoo://docs-llama
data: {{evaluate: zoo://docstrings/test, calibration: zoo://docstrings/validation}}
stages:
  - {stage}: {{precision: {precision}}}
evaluate:
  baseline: {{dtype: float32}}
  samples: 200
  stage_samples: 0
  metrics: [perplexity, throughput, size]
"""


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs") / "engines"
    rows = [
        row(stage, precision, measured(stage, precision, folder)) for stage in builders() for precision in of(stage)
    ]
    table = [HEAD, ("---",) * len(HEAD), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    head = __doc__.split("\n\npython")[0].replace("`make engines`: ", "# ").replace("every", "Every", 1)
    (ROOT / "reports/engines.md").write_text(f"{head}\n\n{text}\n")


def builders() -> list[Stage]:
    """The stages whose engines run here."""
    found = [find_stage(name) for name in stage_names() if name.startswith("build.") and name != "build.fastest"]
    return [s for s in found if all(map(deps.version, s.libraries)) and not unavailable(s)]


def unavailable(stage: Stage) -> str:
    try:
        return stage.unavailable_here(stage.params())
    except PareError as error:
        return str(error)


def of(stage: Stage) -> list[str]:
    """The precisions that a language model can have."""
    known = get_args(stage.params.model_fields["precision"].annotation)
    llama = describe(zoo_model("docs-llama"))
    return [p for p in known if not stage.refuse(llama, stage.params.model_validate({"precision": p}))]


def measured(stage: Stage, precision: str, folder: Path) -> Comparison:
    """Run it, or take what an earlier run left in its folder."""
    name = f"{stage.name.removeprefix('build.')}-{precision}"
    out = folder / name
    if (out / "result.json").is_file():
        return result.from_dict(json.loads((out / "result.json").read_text()))
    recipe = folder / f"{name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    recipe.write_text(RECIPE.format(name=name, stage=stage.name, precision=precision))
    return compress.run(recipe, out=out)


def row(stage: Stage, precision: str, found: Comparison) -> tuple[str, ...]:
    rows = {r.metric: r for r in found.rows}
    speed, size = rows["throughput"], rows["size"]
    read = found.candidate.read_bytes / 1e9 * speed.candidate.value
    return (
        stage.name.removeprefix("build."),
        precision,
        f"{formatting.contrast(rows['perplexity'])} of {formatting.score(rows['perplexity'].baseline, '')}",
        formatting.contrast(speed),
        formatting.score(speed.candidate, ""),
        formatting.size(1e6 * size.candidate.value),
        f"{100 * read / found.machine['read_gb_s']:.0f}% of {found.machine['read_gb_s']:g} GB/s",
    )


if __name__ == "__main__":
    main()
