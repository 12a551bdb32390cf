"""What works on which family of models, from plans: every stage's own recipe on a tiny instance of every family.

`python -m tests.programs.family_table` writes the tables into docs/families.md and README.md, between their marks. No stage runs: a cell says what
`pare check` says, on a machine that has every library; a stage for GPUs alone is asked by itself whether it takes the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

import compress
from compress.artifact import Artifact
from compress.catalogue import Stage, builders, find_engine, find_stage, find_task, stage_names
from compress.errors import Problem, RecipeError
from compress.machine import deps
from compress.model.describing import describe
from tests import quantizing
from tests.contract.test_stage_contract import steps_of
from tests.editors import EDITORS, tiny_editor
from tests.families import MODELS, tiny_text
from tests.specimens import find_specimen

ROOT = Path(__file__).parents[2]
LONG, SHORT = ROOT / "docs/families.md", ROOT / "README.md"
# What a family is called where its tiny model's name is not enough, and variants that are no family of their own.
TITLES = {
    "llama": "Llama",
    "sd": "Stable Diffusion 1/2",
    "sdxl": "SDXL",
    "sd3": "SD3",
    "flux-deep": "FLUX.1 dev",
    "flux-schnell": "FLUX.1 schnell",
    "pixart-alpha": "PixArt-α",
    "pixart-sigma": "PixArt-Σ",
    "sana": "Sana",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3-moe": "Qwen3 MoE",
    "mixtral": "Mixtral",
    "mistral": "Mistral",
    "gpt-oss": "GPT-OSS",
    "granite": "Granite",
    "olmo2": "OLMo 2",
    "smollm3": "SmolLM3",
    "cohere": "Cohere",
    "cohere2": "Cohere 2",
    "gpt2": "GPT-2",
    "opt": "OPT",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "bert": "BERT (decoder)",
    "phi3": "Phi-3",
    "bloom": "BLOOM",
    "dynamic-rope": "Llama with dynamic RoPE",
    "mpt": "MPT",
    "mamba": "Mamba",
    "mamba2": "Mamba 2",
}
# Pipelines that are given images, by class; their parts are a family's.
GIVEN_IMAGES: dict[str, Callable[[Path], Path]] = {kind: partial(tiny_editor, kind=kind) for kind in EDITORS}
FROM_TEXT = "text_to_image"
VARIANTS = {"flux", "sd3-no-t5"}  # the deeper one has blocks to spare; without T5 it is the same family
# As the real models of a family are, where its tiny one tries another case: one window, tied embeddings, a scale of attention.
USUAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"tie_word_embeddings": True},
    "gemma3": {"tie_word_embeddings": True},
}
TYPICAL: dict[str, Callable[[Path], Path]] = {
    "mistral": partial(tiny_text, family="mistral", **USUAL["mistral"]),
    "gemma2": partial(tiny_text, family="gemma2", query_pre_attn_scalar=8, **USUAL["gemma2"]),
    "gemma3": partial(tiny_text, family="gemma3", query_pre_attn_scalar=8, **USUAL["gemma3"]),
}
SIDE = 32  # pixels, of a stage that sets a size: what every family can make
# Stages that pack side by side what the narrowest models do not have.
WIDE = tuple(name for name in stage_names() if name.startswith("quantize.") or name == "distill.quantized")
ODD = ("dynamic-rope",)  # what makes it a family of its own is no matter of widths
SIZED = ("tokens",)  # what must fit a tiny model though a stage has a default
WORKS, NONE = "✓", "–"
SHOWN = ("prune", "distill", "quantize")  # the verbs of README's table
BEGIN, END = "<!-- families: python -m tests.programs.family_table -->", "<!-- /families -->"


@dataclass(frozen=True)
class Family:
    """A family, the task of its models, and by stage "" or why not."""

    title: str
    task: str
    refusals: Mapping[str, str]


def family(name: str, folder: Path, stages: Sequence[str] = ()) -> Family:
    """What comes of these stages, or of all for its task, on a family's tiny model."""
    artifact = describe({**MODELS, **GIVEN_IMAGES, **TYPICAL}[name](folder / "model"))
    widened = artifact.writes_text and name not in ODD
    wide = quantizing.tiny(name, folder / "wide", **USUAL.get(name, {})) if widened else artifact
    of = FROM_TEXT if name in GIVEN_IMAGES else artifact.task  # what works there is asked for here, too
    fitting = [one for one in stages or stage_names() if find_stage(one).works_on(find_task(of))]
    specimen = find_specimen(artifact.task)
    data = {"calibration": specimen.calibration(folder), "train": specimen.train(folder)}
    found = {one: refusal(find_stage(one), wide if one in WIDE else artifact, data, folder) for one in fitting}
    return Family(TITLES.get(name, name.removesuffix("Pipeline")), artifact.task, found)


def refusal(stage: Stage, artifact: Artifact, data: Mapping[str, str], folder: Path) -> str:
    """Why a stage is refused for this model, by itself and in the recipe of its docstring, or ""."""
    steps = steps_of(stage.doc)
    steps[-1][stage.name] |= {name: SIDE for name in ("height", "width") if name in steps[-1][stage.name]}
    if stage.elsewhere("cpu"):
        return stage.refuse(artifact, stage.params(**steps[-1][stage.name]))
    fields = stage.params.model_fields
    least = {k: v for k, v in steps[-1][stage.name].items() if k in fields and (fields[k].is_required() or k in SIZED)}
    whole = problems(artifact, data, folder, steps)
    alone = whole and problems(artifact, data, folder, [{stage.name: least}])
    own = f"{stage.name}: "
    why = alone if len(steps) > 1 and alone.startswith(own) else whole
    return why.removeprefix(own) if alone else ""


def problems(
    artifact: Artifact, data: Mapping[str, str], folder: Path, steps: list[dict[str, dict[str, object]]]
) -> str:
    """What `pare check` says of these steps, on a machine that has every library."""
    body = {"schema": 1, "name": "planned", "model": str(artifact.path), "data": dict(data), "stages": steps}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(body))
    version = deps.version
    with mock.patch.object(deps, "version", lambda library: version(library) or "0"):
        try:
            compress.plan(folder / "recipe.yaml", cache=folder / "cache")
        except RecipeError as error:
            return "; ".join(dict.fromkeys(sentence(problem, folder) for problem in error.problems))
    return ""


def sentence(problem: Problem, folder: Path) -> str:
    """What a problem says, without the place of the tiny model."""
    return problem.message.replace(f"{folder}/model", "the folder").replace(f"{folder}/wide", "the folder")


def measured(names: Sequence[str] = ()) -> list[Family]:
    """These families, or all that tests make: one without a title goes by its name."""
    found = []
    for name in names or [
        *(name for name in (*TITLES, *MODELS) if name in MODELS and name not in VARIANTS),
        *GIVEN_IMAGES,
    ]:
        with tempfile.TemporaryDirectory() as folder:
            found.append(family(name, Path(folder)))
    return list({one.title: one for one in found}.values())


def merged(families: Sequence[Family]) -> list[Family]:
    """Families of one task of which the very same is true, as one, in the order of the first of each."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for one in families:
        groups.setdefault((one.task, tuple(one.refusals.items())), []).append(one.title)
    return [Family(", ".join(titles), task, dict(refusals)) for (task, refusals), titles in groups.items()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *(":-:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def long_tables(families: Sequence[Family]) -> str:
    """By task a table of stages and families, each refusal by its number in the list behind it."""
    parts = []
    for task in dict.fromkeys(one.task for one in families):
        columns = merged([one for one in families if one.task == task])
        stages = list(columns[0].refusals)
        numbers = {
            w: n
            for n, w in enumerate(dict.fromkeys(c.refusals[s] for s in stages for c in columns if c.refusals[s]), 1)
        }
        rows = [
            (f"`{s}`", *(f"({numbers[c.refusals[s]]})" if c.refusals[s] else WORKS for c in columns)) for s in stages
        ]
        listed = "\n".join(f"{number}. {why}" for why, number in numbers.items())
        parts += [f"## {find_task(task).title}", table(["stage", *(c.title for c in columns)], rows), listed]
    return "\n\n".join(part for part in parts if part)


def short_columns() -> dict[str, list[str]]:
    """What README's table tells: some verbs whole, and every engine by its name."""
    verbs = {verb: [name for name in stage_names() if name.startswith(f"{verb}.")] for verb in SHOWN}
    return verbs | {find_engine(one.formats["torch"]).title: [one.name] for one in builders()}


def short_table(families: Sequence[Family]) -> str:
    """By family, how many stages of each verb take it, and which engines."""
    columns = short_columns()
    rows: dict[tuple[str, ...], list[str]] = {}
    for one in (one for one in families if f"{one.title}Pipeline" not in GIVEN_IMAGES):
        cells = tuple(
            _share([one.refusals[name] for name in names if name in one.refusals]) for names in columns.values()
        )
        rows.setdefault(cells, []).append(one.title)
    return table(["family", *columns], [(", ".join(titles), *cells) for cells, titles in rows.items()])


def _share(refusals: Sequence[str]) -> str:
    working = refusals.count("")
    return NONE if not working else WORKS if working == len(refusals) else f"{working} of {len(refusals)}"


def marked(text: str, content: str) -> str:
    """The page with `content` between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    assert closed, f"the page has no {BEGIN} … {END}"
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def main() -> None:
    families = measured()
    for page, content in ((LONG, long_tables(families)), (SHORT, short_table(families))):
        page.write_text(marked(page.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()
