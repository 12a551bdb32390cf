"""What `pare explain data` and `pare explain models` say: read off the records and tables that decide it, so that nothing is reported which
is not so."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from compress.artifact import LANGUAGE_MODEL
from compress.catalogue import (
    builders,
    find_engine,
    find_metric,
    find_stage,
    find_task,
    metric_names,
    stage_names,
    task_names,
)
from compress.commands.explain_parameters import WIDTH
from compress.data.items import ALSO, KINDS_OF_DATA
from compress.model.exportable import NO_GRAPH
from compress.model.families import FAMILIES, PARTS, Family, common_name
from compress.recipe.values import DataSpec
from compress.sources.data import LAYOUTS
from compress.tasks import OF_DATA, Task

if TYPE_CHECKING:
    from compress.params import Params
    from evaluation.metrics import Metric

DATA = """data

What models are taught, calibrated and measured on. A recipe names a source for each role, beside `stages`; relative paths start at the
recipe's folder.

    data:
      train: zoo://digits/train
      calibration: ./few.jsonl
      evaluate: ./images

sources"""
MODELS = """models

What `model:` may name: a folder, `hf://ORGANISATION/NAME` with a commit behind @, or a model of the zoo (`pare list`). What it is for is reported
from its own files, and `pare check` tells what of it does not fit together. A checkpoint in one file, as A1111 and ComfyUI keep them, is
`FILE.safetensors::CONFIG`, or `{file: FILE.safetensors, config: CONFIG}`: its configs and tokenizers are those of CONFIG, a folder of its family.

tasks"""
GIVEN = {
    "captions": "a text for each image, none of them empty",
    "scenes": "captions in the grammar of the zoo's digits",
    "edits": "captions of what is there before an edit and after it, for each image",
}
REFERENCE = "reference"  # the parameter of metrics that compare images with real ones
UNET = "UNet2DConditionModel"  # whose blocks go level by level, and not out of one stack


def data_lines() -> Iterator[str]:
    """The ways in which data may lie, and what each task, stage and metric needs of it."""
    yield DATA
    for layout in LAYOUTS:
        yield from _entry(layout.title, f"{layout.row} ({KINDS_OF_DATA[layout.kind]})")
    yield from _entry("zoo://NAME/train, …/validation, …/test", "the zoo's own sets: `pare list` names them")
    yield "\nroles"
    for role, field in DataSpec.model_fields.items():
        takers = [name for name in stage_names() if role in _roles(name)]
        yield from _entry(role, field.description or "", ("needed by", takers))
    for task in map(find_task, task_names()):
        yield f"\n{task.name}: {KINDS_OF_DATA[task.data]}"
        yield from _by_need(task)


def _roles(stage: str) -> tuple[str, ...]:
    found = find_stage(stage)
    return found.data(found.params.model_construct())


def _by_need(task: Task) -> Iterator[str]:
    """A task's metrics by what they need of its data."""
    fitting = [m for m in map(find_metric, metric_names()) if not task.fits(m.needs, OF_DATA)]
    yield from _names("measured without any", [m for m in fitting if not m.needs_data])
    real = [m for m in fitting if REFERENCE in m.params.model_fields]
    plain = [m for m in fitting if m.needs_data and not m.needs & {*OF_DATA} and m not in real]
    yield from _names(f"measured on any {KINDS_OF_DATA[task.data]}", plain)
    for need in OF_DATA:
        yield from _names(f"need {GIVEN[need]}", [m for m in fitting if need in m.needs])
    yield from _names(f"compared with the images, or against a `{REFERENCE}` in their place", real)
    if others := [one.title for one in LAYOUTS if task.data not in (one.kind, *ALSO.get(one.kind, ()))]:
        yield from _entry("refused", "; ".join(others))


def lines_of_models() -> Iterator[str]:
    """What opens, and what of each family can be cut, taught and built."""
    yield MODELS
    for task in map(find_task, task_names()):
        yield from _entry(task.name, f"{task.title}, run by {', '.join(task.libraries)}")
    yield "\nfamilies whose config says what a cut leaves (prune.width: parts; prune.depth: blocks), and whose blocks can be compared with a"
    yield "teacher's (distill.*); of any other decoder, blocks go and are compared where the source of its class shows that each feeds the"
    yield "next and nothing else; all others can be quantized and built"
    for kind, family in FAMILIES.items():
        yield f"  {common_name(kind):<8} {kind:<30} {_cuts(kind, family)}"
    yield "\nbuilt into engines by"
    for stage in builders():
        tasks = [task for task in task_names() if stage.works_on(find_task(task))]
        yield f"  {stage.name:<22} {find_engine(stage.leaves('torch')).title}: models for {', '.join(tasks)}"
    yield f"\nby none as a graph, for a `{LANGUAGE_MODEL}` of model_type"
    for kind, why in NO_GRAPH.items():
        yield f"  {kind:<22} {why}"


def _cuts(kind: str, family: Family) -> str:
    parts = [part for part in PARTS if part in family.widths]
    blocks = [stack.field for stack in family.stacks] or (["blocks of a level"] if kind == UNET else [])
    message = {"width": parts, "depth": blocks}
    return "; ".join(f"{cut}: {', '.join(names)}" for cut, names in message.items() if names)


def _entry(title: str, text: str, more: tuple[str, Iterable[str]] = ("", ())) -> Iterator[str]:
    yield f"  {title}"
    yield from _wrapped(text, 6)
    if names := ", ".join(more[1]):
        yield from _wrapped(f"{more[0]} {names}", 6)


def _names(title: str, metrics: list[Metric[Params]]) -> Iterator[str]:
    if metrics:
        yield from _entry(title, ", ".join(one.name for one in metrics))


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
