"""Several engines of one component, built, held against torch and timed in turns; the fastest that agrees is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch

from compress.artifact import MANIFEST, Artifact, Provenance, derive, describe, weight_files, write_manifest
from compress.building import PROMPTS, first_calls
from compress.catalogue import Stage
from compress.context import Context
from compress.errors import PareError, StageFailed
from compress.events import Event
from compress.racing import Pace, fastest, race, undecided
from compress.tasks import open_component
from compress.tasks.text_to_image import TextToImage, function_of

TORCH = "torch"
FINAL = 3  # times as many blocks, for those that noise did not tell apart


@dataclass(frozen=True)
class Trial:
    """One way to run a component: an artifact that has it so, or the reason why there is none."""

    name: str
    artifact: Artifact | None
    relative: float = 0.0  # difference to torch, root mean square over that of its output
    why: str = ""


def choose(artifact: Artifact, params: Any, stages: Sequence[Stage], context: Context) -> None:
    """Fill `context.out` with the artifact, each component in the format that is fastest here.

    Raises:
        StageFailed: no engine took a component.
    """
    names = artifact.working if params.components == "all" else params.components
    kept: dict[str, Artifact] = {}
    for name in names:
        trials = [Trial(TORCH, artifact), *_build_all(artifact, name, params, stages, context)]
        fit = {t.name: t for t in trials if t.artifact is not None and t.relative <= params.within}
        if len(fit) == 1:
            reasons = "; ".join(f"{t.name}: {t.why or f'differs by {t.relative:.2g}'}" for t in trials[1:])
            raise StageFailed(
                f"no engine took `{name}` within {params.within:g} of torch ({reasons or 'none has such a precision'})",
                fix="raise `within`, name other precisions, or leave this component out",
            )
        calls = _calls(artifact, name, fit, params)
        paces = race(calls, params.blocks)
        close = undecided(paces)
        if len(close) > 1:
            paces |= race({n: calls[n] for n in close}, FINAL * params.blocks)
        best = fastest({n: paces[n] for n in close})
        kept[name] = fit[best].artifact or artifact
        context.note(f"{name} runs fastest as {best}", component=name, kept=best, tried=_table(trials, paces))
    _assemble(artifact, kept, context)
    shutil.rmtree(context.scratch / "trials", ignore_errors=True)


def _build_all(
    artifact: Artifact, component: str, params: Any, stages: Sequence[Stage], context: Context
) -> list[Trial]:
    ways = [(s, p) for s in stages for p in params.precisions if p in _precisions(s)]
    titles = context.progress(ways, f"engines of {component}", len(ways))
    return [_build(artifact, component, stage, precision, params, context) for stage, precision in titles]


def _precisions(stage: Stage) -> tuple[str, ...]:
    return get_args(stage.params.model_fields["precision"].annotation)


def _build(artifact: Artifact, component: str, stage: Stage, precision: str, params: Any, context: Context) -> Trial:
    """Build one engine, or find that an interrupted run has built it."""
    title = f"{stage.name.removeprefix('build.')} {precision}"
    chosen = {"precision": precision, "components": (component,), "samples": params.samples}
    given = stage.params(**{k: v for k, v in chosen.items() if k in stage.params.model_fields})
    if why := _why_not(artifact, stage, given):
        return Trial(title, None, why=why)
    out, done = (context.scratch / "trials" / component / f"{title}{end}" for end in ("", ".done"))
    heard: list[Event] = []
    if not done.is_file():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        within = replace(context, out=out, scratch=context.scratch / "inner", emit=heard.append, link=False)
        within.scratch.mkdir(parents=True, exist_ok=True)
        try:
            stage.run(artifact, given, within)
        except PareError as error:
            return Trial(title, None, why=error.problems[0].message)
        except Exception as error:  # what a foreign library raises on a model it cannot take is an answer too
            return Trial(title, None, why=f"{type(error).__name__}: {error}"[:300])
        made_by = Provenance(stage.name, stage.version, given.counted(), "")  # native code runs for those it names
        write_manifest(replace(describe(out), lineage=(*artifact.lineage, made_by)))
        done.write_text(str(next((e.facts["relative"] for e in heard if "relative" in e.facts), 0.0)))
    return Trial(title, describe(out), float(done.read_text()))


def _why_not(artifact: Artifact, stage: Stage, given: Any) -> str:
    """Why a stage cannot build what runs here, or ""."""
    try:
        return stage.refuse(artifact, given) or stage.idle_here(given)
    except PareError as error:
        return error.problems[0].message


def _calls(
    artifact: Artifact, component: str, trials: Mapping[str, Trial], params: Any
) -> dict[str, Callable[[], object]]:
    """The same real call to each trial's component."""
    # torch in float32, as in every comparison; an engine takes float32 whatever it computes in.
    opened = {name: open_component(t.artifact or artifact, component, "float32") for name, t in trials.items()}
    if artifact.task == "text_generation":
        words = int(opened[TORCH].config.vocab_size)
        tokens = torch.randint(
            0, words, (params.batch, params.prompt_tokens), generator=torch.Generator().manual_seed(0)
        )
        length = {"max_new_tokens": params.new_tokens, "min_new_tokens": params.new_tokens}
        call = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens), **length}
        return {name: partial(_without_gradients, model.generate, tokens, **call) for name, model in opened.items()}
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(params.batch)]
    task = TextToImage(artifact, dtype=torch.float32)
    heard = first_calls(task, (component,), prompts)[component]
    function = function_of(component)
    return {name: partial(_without_gradients, getattr(module, function), **heard) for name, module in opened.items()}


def _without_gradients(function: Callable[..., object], *args: Any, **kwargs: Any) -> object:
    with torch.inference_mode():
        return function(*args, **kwargs)


def _table(trials: Sequence[Trial], paces: Mapping[str, Pace]) -> list[dict[str, Any]]:
    """What the report shows of each trial, the fastest first."""
    rows = []
    for trial in sorted(trials, key=lambda t: paces[t.name].seconds if t.name in paces else float("inf")):
        pace = paces.get(trial.name)
        rows.append(
            {
                "engine": trial.name,
                "milliseconds": round(1000 * pace.seconds, 3) if pace else None,
                "times torch": round(paces[TORCH].seconds / pace.seconds, 3) if pace else None,
                "noise": round(pace.spread, 4) if pace else None,
                "difference": float(f"{trial.relative:.2g}") if trial.artifact else None,
                "why not": trial.why or ("" if pace else "differs from torch by more than allowed"),
            }
        )
    return rows


def _assemble(artifact: Artifact, kept: Mapping[str, Artifact], context: Context) -> None:
    """The artifact with each component's files from the trial that won."""
    engines = {name: made for name, made in kept.items() if made.path != artifact.path}
    weights = [f.relative_to(artifact.path) for name in engines for f in weight_files(artifact.folder(name))]
    made = derive(artifact, context.out, without=tuple(map(str, weights)), link=context.link)
    for name, trial in engines.items():
        for file in sorted(trial.folder(name).iterdir()):
            if file.is_file() and file.name != MANIFEST and not (made.folder(name) / file.name).exists():
                shutil.move(file, made.folder(name) / file.name)
    write_manifest(made.replacing({name: trial.components[name].format for name, trial in engines.items()}))
