"""Several engines of one component, built, compared with torch and timed in turns; the fastest that agrees is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.algorithms.tensors import device_of, finish
from compress.artifact import (
    MANIFEST,
    Artifact,
    Provenance,
    derive,
    weight_files,
    write_manifest,
)
from compress.building.build import first_calls, repeated
from compress.building.racing import Pace, fastest, race, undecided
from compress.catalogue import Stage, find_engine
from compress.context import Context
from compress.engines import ENCODER
from compress.errors import CacheError, PareError, StageFailed
from compress.events import Event
from compress.machine.devices import CPU, Opening
from compress.machine.turns import turn
from compress.model.describing import describe
from compress.model.exportable import wanted
from compress.opening import open_component, open_language, open_task
from compress.params import Params
from compress.planning.step_checks import elsewhere
from compress.store.cache import no_room, write_whole

if TYPE_CHECKING:
    from compress.stages.build.fastest import BuildFastest

TORCH = "torch"
MADE, DIFFERENCE, DECISION = "artifact", "difference.txt", "decision.json"
NO_ANSWER = (CacheError, MemoryError, torch.OutOfMemoryError)  # of the machine, and nothing about an engine
FINAL = 3  # times as many blocks, for those that noise did not tell apart


@dataclass(frozen=True)
class Trial:
    """One way to run a component: an artifact that has it so, or the reason why there is none."""

    name: str
    artifact: Artifact | None
    relative: float = 0.0  # difference to torch, root mean square over that of its output
    why: str = ""


def choose(artifact: Artifact, params: BuildFastest, stages: Sequence[Stage], context: Context) -> None:
    """Fill `context.out` with the artifact, each component in the format that is fastest here.

    Raises:
        StageFailed: no engine took a component.
    """
    names = wanted(artifact, params.components)
    kept = {name: _choose(artifact, name, params, stages, context) for name in names}
    _assemble(artifact, kept, context)


def _choose(artifact: Artifact, name: str, params: BuildFastest, stages: Sequence[Stage], context: Context) -> Artifact:
    """An artifact that has the component as it runs fastest; an interrupted run's decision stands."""
    place = context.scratch / "trials" / name
    decision = place / DECISION
    if not decision.is_file():
        trials = [Trial(TORCH, artifact), *_build_all(artifact, name, params, stages, context, place)]
        write_whole(decision, _raced(artifact, name, trials, params, context))
    found = json.loads(decision.read_text())
    for loser in place.iterdir():
        if loser.is_dir() and loser.name != found["kept"]:
            shutil.rmtree(loser)
    context.note(f"{name} runs fastest as {found['kept']}", component=name, **found)
    return artifact if found["kept"] == TORCH else describe(place / found["kept"] / MADE)


def _raced(
    artifact: Artifact, name: str, trials: Sequence[Trial], params: BuildFastest, context: Context
) -> dict[str, Any]:
    """The name of the fastest that may be kept, and what became of each.

    Raises:
        StageFailed: there is none but torch.
    """
    near = [t for t in trials if t.artifact is not None and t.relative <= params.within]
    calls, failed = _calls(artifact, name, near, params, context)
    trials = [replace(t, artifact=None, why=failed[t.name]) if t.name in failed else t for t in trials]
    if len(calls) == 1:
        reasons = "; ".join(f"{t.name}: {t.why or f'differs by {t.relative:.2g}'}" for t in trials[1:])
        raise StageFailed(
            f"no engine took `{name}` within {params.within:g} of torch ({reasons or 'none has such a precision'})",
            fix="raise `within`, name other precisions, or leave this component out",
        )
    with turn(context.opening.device, context.emit):
        paces = race(calls, params.blocks)
        close = undecided(paces)
        if len(close) > 1:
            paces |= race({n: calls[n] for n in close}, FINAL * params.blocks)
    return {"kept": fastest({n: paces[n] for n in close}), "tried": _table(trials, paces)}


def _build_all(
    artifact: Artifact, component: str, params: BuildFastest, stages: Sequence[Stage], context: Context, place: Path
) -> list[Trial]:
    ways = [(s, p) for s in stages for p in params.precisions if p in find_engine(s.leaves(TORCH)).precisions]
    titles = context.progress(ways, f"engines of {component}", len(ways))
    return [_build(artifact, component, stage, precision, params, context, place) for stage, precision in titles]


def _build(
    artifact: Artifact,
    component: str,
    stage: Stage,
    precision: str,
    params: BuildFastest,
    context: Context,
    place: Path,
) -> Trial:
    """Build one engine, or find that an interrupted run has built it: its folder has its name once it is whole."""
    title = f"{stage.name.removeprefix('build.')} {precision}"
    chosen = {"precision": precision, "components": (component,), "samples": params.samples, "profile": params.profile}
    given = stage.params(**{k: v for k, v in chosen.items() if k in stage.params.model_fields})
    if why := _why_not(artifact, stage, given, context.opening):
        return Trial(title, None, why=why)
    whole, part = place / title, place / f"{title}.part"
    if not whole.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        (part / MADE).mkdir(parents=True)
        try:
            relative = _run(artifact, stage, given, context, part / MADE)
        except NO_ANSWER:
            raise
        except PareError as error:
            return Trial(title, None, why=error.problems[0].message)
        except Exception as error:  # what a foreign library raises on a model it cannot take is an answer too
            if no_room(error, place):
                raise
            return Trial(title, None, why=f"{type(error).__name__}: {error}"[:300])
        _drop_others(artifact, component, part / MADE)
        (part / DIFFERENCE).write_text(str(relative))
        part.rename(whole)
    return Trial(title, describe(whole / MADE), float((whole / DIFFERENCE).read_text()))


def _run(artifact: Artifact, stage: Stage, given: Params, context: Context, out: Path) -> float:
    """Build an engine as its own stage does. Returns how far it is from torch."""
    recorded: list[Event] = []
    within = replace(context, out=out, scratch=context.scratch / "inner", emit=recorded.append)
    within.scratch.mkdir(parents=True, exist_ok=True)
    stage.run(artifact, given, within)
    made_by = Provenance(stage.name, stage.version, given.counted(), "")  # native code runs for those it names
    write_manifest(replace(describe(out), lineage=(*artifact.lineage, made_by)))
    return next((e.facts["relative"] for e in recorded if "relative" in e.facts), 0.0)


def _drop_others(artifact: Artifact, component: str, made: Path) -> None:
    """Leave out the weights of the other components: of a trial only its own is looked at."""
    others = [artifact.folder(name) for name in artifact.components if name != component]
    for file in (f for folder in others for f in weight_files(folder)):
        (made / file.relative_to(artifact.path)).unlink(missing_ok=True)


def _why_not(artifact: Artifact, stage: Stage, given: Params, opening: Opening) -> str:
    """Why a stage cannot build what runs here, or ""."""
    try:
        return (
            elsewhere(stage.leaves("torch"), opening)
            or stage.misplaced(artifact, given, opening.device)
            or stage.refuse(artifact, given)
            or stage.unavailable_here(given)
        )
    except PareError as error:
        return error.problems[0].message


def _calls(
    artifact: Artifact, component: str, trials: Sequence[Trial], params: BuildFastest, context: Context
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The same real call to each trial's component, and why some do not take it."""
    made = (
        _text_call(artifact, params, context)
        if artifact.writes_text
        else _image_call(artifact, component, params, context)
    )
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for trial in trials:
        try:
            # torch in float32, as in every comparison; an engine takes float32 whatever it computes in.
            call = partial(
                _made,
                device_of(context.opening),
                made(open_component(trial.artifact or artifact, component, context.opening.of("float32"))),
            )
            call()
        except NO_ANSWER:
            raise
        except Exception as error:
            if trial.name == TORCH:
                raise
            failed[trial.name] = error.problems[0].message if isinstance(error, PareError) else f"{error}"[:300]
        else:
            calls[trial.name] = call
    return calls, failed


def _text_call(artifact: Artifact, params: BuildFastest, context: Context) -> Callable[[Any], Callable[[], object]]:
    opening = context.opening.of("float32")
    words = int(open_language(artifact, opening).model.config.get_text_config().vocab_size)
    generator = torch.Generator(CPU).manual_seed(0)
    drawn = torch.randint(0, words, (params.batch, params.prompt_tokens), generator=generator, device=CPU)
    tokens = drawn.to(opening.device)
    length = {"max_new_tokens": params.new_tokens, "min_new_tokens": params.new_tokens}
    call = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens), **length}
    return lambda model: partial(model.generate, tokens, **call)


def _image_call(
    artifact: Artifact, component: str, params: BuildFastest, context: Context
) -> Callable[[Any], Callable[[], object]]:
    task = open_task(artifact, context.opening.of("float32"))
    recorded = first_calls(task, (component,), repeated(task.examples, params.batch))[component]
    return lambda module: partial(getattr(module, task.function_of(component)), **recorded)


def _made(device: torch.device, call: Callable[[], object]) -> object:
    """A call without gradients, at an end when its device has done all of it: a clock is read next."""
    with torch.no_grad():
        found = call()
    finish(device)
    return found


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
        folder = trial.folder(name)
        for file in (
            file for place in (folder, folder / ENCODER) if place.is_dir() for file in sorted(place.iterdir())
        ):
            target = made.folder(name) / file.relative_to(folder)
            if file.is_file() and file.name != MANIFEST and not target.exists():
                target.parent.mkdir(exist_ok=True)
                _place(file, target)
    write_manifest(made.replacing({name: trial.components[name].format for name, trial in engines.items()}))


def _place(file: Path, target: Path) -> None:
    """Put a trial's file into the artifact and leave the trial whole, for the run may be cut off here too."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
