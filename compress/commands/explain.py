"""What `pare explain NAME` says: of a stage, a metric, a task, an engine, and of the subjects that belong to none: data, gates,
models and recipes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, get_args, get_origin

from compress.catalogue import (
    builders,
    engine_names,
    find_engine,
    find_metric,
    find_stage,
    find_task,
    metric_names,
    stage_names,
    task_names,
    tasks_for,
)
from compress.commands.explain_parameters import WIDTH, parameter_lines
from compress.commands.explain_subjects import data_lines, lines_of_models
from compress.errors import UserError, near
from compress.params import Params
from compress.recipe.adapters import AdapterSpec
from compress.recipe.gates import Gate
from compress.recipe.keep import KEEP
from compress.recipe.values import ADAPTER_KEY, ROLE_KEY, STEP_KEYS, DataSpec, EvalSpec, Head
from compress.tasks import OF_DATA

GATES = """gates

What a metric must hold for the verdict to be good. A gate is of a metric that is measured and gives exactly one bound. It passes where the
whole 95% interval is inside the bound, fails where it is wholly outside, and is inconclusive in between: more samples would tell. A gate
of quality is inconclusive, too, where fewer than 8 prompts or documents count.

    gates:
      latency: {faster: 3}            # at least three times as fast as the baseline
      size: {smaller: 2}              # at most half as large
      perplexity: {worse_by: 5%}      # rises by no more than 5% of the baseline's value
      clip_score: {within: 1%}        # neither rises nor falls by more
      peak_memory: {at_most: 1 GB}    # the candidate itself, whatever the baseline takes

A number alone is in the metric's unit; with a unit it is text (`1 GB`, `200 ms`), and a margin in % is a share of the baseline's value.
A gate that `extends` brings is taken away by `null`: `gates: {kid: null}`, or `--set gates.kid=null`. `pare eval` takes gates as options:
`--gate kid.worse_by=0.002`.

bounds"""
ADAPTERS = """An adapter is a LoRA that peft, diffusers or kohya's trainers saved: a folder or its .safetensors file. It is fused before the first stage, so
the baseline is the model with the adapter in it; what of it cannot be kept (LoHa, packed weights, new tokens) is refused by `pare check`.
`pare run RECIPE --save FOLDER` without stages writes the fused model out, for the commands that take no recipe.

With `fuse: false` it stays an adapter beside a pipeline, in `adapters/NAME` of every folder that a stage leaves, for diffusers' `load_lora_weights`.
Baseline and candidate are judged with it loaded, stages work on the model without it. Each stage says what becomes of it: `prune.depth` drops its
updates of blocks that go, `prune.width` cuts its pairs along with their layers (rank and alpha stay), distillation, settings, and quantization to
torch modules leave it as it is. An engine of a component that it changes is refused: there, fuse it."""
ADAPTER = f"""adapter

{ADAPTERS}

    model: ./base
    adapter: ./lora                      # or {{path: ./lora, scale: 0.8}}, {{path: ./lora, fuse: false}}, or a list of these

`pare explain recipe` tells the rest of a recipe.

adapter"""
RECIPE = """recipe

A YAML file: a model, the stages that compress it one after another, what is then measured beside the baseline, and the gates. `pare check`
tells every mistake with its line, `pare schema` gives the JSON Schema for an editor.

    schema: 1
    extends: quickstart.yaml             # laid over that file: mappings merge, lists and values replace, null takes a gate away
    name: digits-${bits}
    vars: {steps: 8}                     # values for ${steps}; a value that is ${steps} alone keeps its type
    matrix: {bits: [int8, int4_weights]} # one recipe for each combination; the names get -bits-int8, -bits-int4_weights
    adapter: ./lora                      # or {path: ./lora, scale: 0.8}, or a list of these
    stages:
      - accelerate.steps: {steps: "${steps}"}
      - build.openvino: {id: plain}
      - build.openvino: {id: engine, precision: "${bits}", from: accelerate.steps}
      - quantize.nncf: {mode: int8}
        keep: if_faster                  # timed here against what it was given; what is not faster is left out, and stated
    evaluate:
      metrics: {kid: null, size: {}}     # over an inherited list: kid is taken away, size added
      controls: [plain]                  # what another branch leaves, compared with the candidate
    gates: {kid: null}

Stages may branch: `from:` names the step, or `source`, that one continues; the last one leaves the candidate. What another branch leaves
can be a control, a plain competitor: it is scored on the same items, timed in the same blocks and held to the same gates, so that the report
says how far the candidate is ahead of it, and whether it would have passed itself.

{ADAPTERS}

`--set PATH=VALUE` changes a value from outside: `--set evaluate.samples=64`, `--set stages.0.steps=6` (a stage by its number from 0, then
its parameter), `--set vars.steps=4`, `--set gates.kid=null`. In Python, `recipe.with_({"stages.0.steps": 6})` does the same. Relative
paths start at the folder of the file that they are written in.

the top""".replace("{ADAPTERS}", ADAPTERS)
OWN = {
    "schema": "1: the version of this format",
    "extends": "another recipe file, from this one's folder, that this one is laid over",
    "vars": "values for ${name}, anywhere below",
    "matrix": "lists of values for ${name}: one recipe for each combination",
    "adapter": ADAPTER_KEY,
    "stages": "a list of `stage.name: {parameters}`, run in order; `pare list` names them, `pare explain STAGE` tells each",
    "gates": "what a metric must hold, by its name: `pare explain gates`",
}


def explain(name: str) -> str:
    """The whole text on a stage, a metric, a task, an engine or a subject.

    Raises:
        UserError: nothing is called so; the fix names what comes near.
    """
    message: dict[str, Callable[[], Iterator[str]]] = {
        **{task: partial(_task, task) for task in task_names()},
        **{engine: partial(_engine, engine) for engine in engine_names()},
        **{metric: partial(_metric, metric) for metric in metric_names()},
        **{stage: partial(_stage, stage) for stage in stage_names()},
        **TOPICS,
    }
    if not name:
        return "\n".join(_everything())
    if name not in message:
        raise UserError(f"no stage, metric, task or engine is called `{name}`", fix=_instead(name, tuple(message)))
    return "\n".join(message[name]())


def _instead(name: str, known: tuple[str, ...]) -> str:
    """What to ask for in place of a name that nothing has: stages that end so, or those with a parameter, or a value of one, that is
    called so; else what has nearly that name."""
    found = {one: "" for one in known if one.rpartition(".")[2] == name}
    for stage in stage_names() if name and not found else ():
        for field, info in find_stage(stage).params.model_fields.items():
            if name in _values(info.annotation):
                found[stage] = f" ({field}: {name})"
            elif field == name:
                found[stage] = f" (its {field})"
    asked = [f"`pare explain {one}`{where}" for one, where in found.items()]
    return " or ".join(asked) if asked else near(name, known)


def _values(annotation: object) -> set[object]:
    """The values that a type lists, also where None may stand in their place."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {value for part in get_args(annotation) for value in _values(part)}


def _everything() -> Iterator[str]:
    """What there is to be explained."""
    yield "pare explain NAME, of\n"
    kinds = {"subjects": tuple(TOPICS), "stages": stage_names(), "metrics": metric_names(), "tasks": task_names()}
    for title, names in (*kinds.items(), ("engines", engine_names())):
        yield from textwrap.wrap(", ".join(names), WIDTH, initial_indent=f"{title:<10}", subsequent_indent=" " * 10)


def _adapter() -> Iterator[str]:
    yield ADAPTER
    yield from parameter_lines(AdapterSpec)


def _gates() -> Iterator[str]:
    yield GATES
    yield from parameter_lines(Gate)
    yield "\nmetrics, the bounds each takes, and its units"
    for name in metric_names():
        yield f"  {name:<22} {_gate_words(name)}"


def _recipe() -> Iterator[str]:
    yield RECIPE
    for key, text in OWN.items():
        yield from _described(key, text)
    yield from parameter_lines(Head)
    for section, cls in (("adapter", AdapterSpec), ("data", DataSpec), ("evaluate", EvalSpec)):
        yield f"\n{section}"
        yield from parameter_lines(cls)
    yield "\nbeside the parameters of a stage"
    for key, text in STEP_KEYS.items():
        yield from _described(key, text)


def _task(name: str) -> Iterator[str]:
    task = find_task(name)
    yield f"{name}\n\n{task.title}\n\nsettings, beside those of any task: evaluate"
    yield from (*parameter_lines(task.settings),) or ("  none",)
    yield "\nevaluate.baseline"
    yield from (*parameter_lines(task.baseline),) or ("  none",)
    fitting = [metric for metric in metric_names() if not task.fits(find_metric(metric).needs, OF_DATA)]
    working = [stage for stage in stage_names() if find_stage(stage).works_on(task)]
    yield f"\ndata      {task.data}"
    for title, names in (("metrics", fitting), ("stages", working)):
        yield from textwrap.wrap(", ".join(names), WIDTH, initial_indent=f"{title:<10}", subsequent_indent=" " * 10)


def _engine(format: str) -> Iterator[str]:
    engine = find_engine(format)
    builds = [stage.name for stage in builders() if stage.leaves("torch") == format]
    yield f"{format}\n\n{engine.title}, run by the library {engine.distribution}\n"
    yield f"devices     {', '.join(sorted(engine.devices))}"
    yield f"precisions  {', '.join(engine.precisions) or 'those of its weights'}"
    yield f"built by    {', '.join(builds) or 'nothing: models come so'}"


def _stage(name: str) -> Iterator[str]:
    stage = find_stage(name)
    yield from _head(stage.name, stage.doc, stage.params)
    yield "\nbeside them"
    roles = {role: ROLE_KEY.format(role) for role in stage.inputs}
    changes = bool(stage.formats) and all(a != b for a, b in stage.formats.items())  # and is never kept only if faster
    for key, text in {**STEP_KEYS, **roles}.items():
        if key not in stage.params.model_fields and not (changes and key == KEEP):
            yield from _described(key, text)
    formats = ", ".join(f"{a} → {b}" for a, b in stage.formats.items()) or "any, which stays as it is"
    tasks, effects = ", ".join(tasks_for(stage.needs)), ", ".join(sorted(stage.effects))
    yield f"\ntasks     {tasks}\nformats   {formats}\nchanges   {effects}"
    if (
        stage.makes
        and set(stage.needs) <= {"images", "latents", "denoising", "trajectories"}
        and "torch" in stage.formats
    ):
        yield f"adapters  {'go on beside what it leaves (fuse: false)' if stage.carries else 'of what it works on must be fused'}"
    if stage.effects == {"settings"}:
        yield f"numbers   {'other than without it: lossy' if stage.lossy else 'the same, but for rounding: exact'}"
    data = [f"{role} data" for role in stage.data(stage.params.model_construct())]
    yield f"repeats   {stage.reproducible}\nneeds     {', '.join((*stage.libraries, *data))}"
    if able := stage.machine():
        yield f"\nthis machine\n{textwrap.indent(able, '  ')}"


def _metric(name: str) -> Iterator[str]:
    metric = find_metric(name)
    yield from _head(name, metric.doc or metric.title, metric.params)
    yield f"\ngates     {_gate_words(name)} (`pare explain gates`)"


def _head(name: str, doc: str, params: type[Params]) -> Iterator[str]:
    yield f"{name}\n\n{doc.strip()}\n\nparameters"
    yield from (*parameter_lines(params),) or ("  none",)


def _gate_words(name: str) -> str:
    from evaluation.verdict.quantities import units

    metric = find_metric(name)
    words = [word for word in metric.gate_words if word not in ("speedup", "two_sided")]
    others = [unit for unit in units(metric.unit) if unit != metric.unit]
    unit = f"; in {metric.unit}" + (f" (or {', '.join(others)})" if others else "") if metric.unit else ""
    return ", ".join(words) + unit


def _described(key: str, text: str) -> Iterator[str]:
    yield f"  {key}"
    yield from textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


TOPICS: dict[str, Callable[[], Iterator[str]]] = {
    "adapter": _adapter,
    "data": data_lines,
    "gates": _gates,
    "models": lines_of_models,
    "recipe": _recipe,
}
