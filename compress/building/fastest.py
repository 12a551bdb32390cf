"""Several engines of one component, and torch with hooks, compared with plain torch and timed in turns; the fastest that agrees is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

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
from compress.building.hooked_trials import apart_in_steps, fell_back, hook, twin, ways, with_hooks
from compress.building.racing import Pace, race, undecided
from compress.catalogue import Stage
from compress.context import Context
from compress.engines import ENCODER
from compress.engines.parity import Difference, compare
from compress.errors import CacheError, PareError, StageFailed, UserError
from compress.events import Event
from compress.machine.devices import CPU, Opening
from compress.machine.turns import turn
from compress.model.describing import describe
from compress.opening import open_component, open_language, open_task
from compress.params import Params
from compress.store.cache import no_room, write_whole

if TYPE_CHECKING:
    from compress.stages.build.fastest import BuildFastest

Way: TypeAlias = tuple[
    Stage, Params, str
]  # what builds an engine, what it is given, and why it cannot be tried here, or ""
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
    hooks: tuple[str, ...] = ()  # in torch's own module, by their stages


def choose(
    artifact: Artifact,
    ways: Mapping[str, Sequence[Way]],
    params: BuildFastest,
    hooks: Mapping[str, str],
    context: Context,
) -> None:
    """Fill `context.out` with the artifact, each component in the format that is fastest here.

    Args:
        ways: by component, the engines that are tried.
        hooks: what torch is tried with in the main component: stages, by the names that they have here.

    Raises:
        StageFailed: there is nothing but plain torch for a component.
    """
    kept: dict[str, Artifact] = {}
    # The main one last: it knows then what stands beside it.
    for name in sorted(ways, key=lambda name: name == artifact.main):
        mixed = any(made.path != artifact.path for made in kept.values())
        opening = context.opening.of("float32" if mixed else params.torch_dtype)
        hooked = hooks if name == artifact.main else {}
        kept[name] = _choose(artifact, name, ways[name], params, hooked, opening, context)
    _assemble(artifact, kept, context)


def _choose(
    artifact: Artifact,
    name: str,
    ways: Sequence[Way],
    params: BuildFastest,
    hooks: Mapping[str, str],
    opening: Opening,
    context: Context,
) -> Artifact:
    """An artifact that has the component as it runs fastest; an interrupted run's decision stands. opening: of torch beside the engines."""
    place = context.scratch / "trials" / name
    decision, in_torch = place / DECISION, {one.name: one for one in _hooked(artifact, hooks)}
    if not hooks and all(why for _, _, why in ways) and name != artifact.main:
        context.note(f"{name} stays in torch: nothing else runs on {opening.device}", component=name)
        return artifact
    if not decision.is_file():
        place.mkdir(parents=True, exist_ok=True)
        built = _build_all(artifact, name, ways, context, place)
        write_whole(decision, _raced(artifact, name, [*in_torch.values(), *built], params, opening, context))
    found = json.loads(decision.read_text())
    for loser in place.iterdir():
        if loser.is_dir() and loser.name != found["kept"]:
            shutil.rmtree(loser)
    context.note(f"{name} runs fastest as {found['kept']}", component=name, **found)
    kept = in_torch[found["kept"]].artifact if found["kept"] in in_torch else None
    return kept or describe(place / found["kept"] / MADE)


def _hooked(artifact: Artifact, hooks: Mapping[str, str]) -> Iterator[Trial]:
    """Torch as it is, and with hooks; how far those are from it is seen when they are called."""
    yield Trial(TORCH, artifact)
    for names in ways(tuple(hooks)):
        stages = tuple(hooks[name] for name in names)
        made, why = with_hooks(artifact, stages)
        yield Trial(f"{TORCH} {' + '.join(names)}", None if why else made, why=why, hooks=stages)


def _raced(
    artifact: Artifact, name: str, trials: Sequence[Trial], params: BuildFastest, opening: Opening, context: Context
) -> dict[str, Any]:
    """The name of the fastest that may be kept, of those that noise does not tell apart the nearest to torch; and what became of each.

    Raises:
        StageFailed: there is none but torch.
    """
    near = [t for t in trials if t.artifact is not None and t.relative <= params.within]
    calls, seen = _calls(artifact, name, near, params, opening)
    trials = [seen.get(t.name, t) for t in trials]
    calls = {t.name: calls[t.name] for t in trials if t.name in calls and t.relative <= params.within}
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
    apart = {t.name: t.relative for t in trials}
    kept = min(undecided({n: paces[n] for n in close}), key=lambda name: (apart[name], paces[name].seconds))
    return {"kept": kept, "torch in": opening.dtype, "tried": _table(trials, paces)}


def _build_all(artifact: Artifact, component: str, ways: Sequence[Way], context: Context, place: Path) -> list[Trial]:
    titles = context.progress(ways, f"engines of {component}", len(ways))
    return [_build(artifact, component, way, context, place) for way in titles]


def _build(artifact: Artifact, component: str, way: Way, context: Context, place: Path) -> Trial:
    """Build one engine, or find that an interrupted run has built it: its folder has its name once it is whole."""
    stage, given, why = way
    title = f"{stage.name.removeprefix('build.')} {given.precision}"  # type: ignore[attr-defined]
    if why := why or _why_not(artifact, stage, given):
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


def _why_not(artifact: Artifact, stage: Stage, given: Params) -> str:
    """Why a stage does not take a component, or cannot build what runs here; or ""."""
    try:
        return stage.refuse(artifact, given) or stage.unavailable_here(given)
    except PareError as error:
        return error.problems[0].message


def _calls(
    artifact: Artifact, component: str, trials: Sequence[Trial], params: BuildFastest, opening: Opening
) -> tuple[dict[str, Callable[[], object]], dict[str, Trial]]:
    """The same real call to each trial's component, and what was seen of trials when they were called: why some do not take it, and how
    far torch with hooks is from torch without."""
    ask = _text_asked if artifact.writes_text else _image_asked
    asked = ask(artifact, component, params, opening)
    plain = open_component(artifact, component, opening)
    calls: dict[str, Callable[[], object]] = {}
    seen: dict[str, Trial] = {}
    for trial in trials:
        try:
            module = _opened(trial, component, plain, opening)
            call = partial(_made, device_of(opening), asked.call(module))
            call()
            if trial.hooks:
                relative = asked.difference(plain, module).relative
                if why := fell_back(module):
                    raise UserError(f"no graph answers its calls: {why}")
                seen[trial.name] = replace(trial, relative=relative)
        except NO_ANSWER:
            raise
        except Exception as error:
            if trial.name == TORCH:
                raise
            why = error.problems[0].message if isinstance(error, PareError) else f"{error}"[:300]
            seen[trial.name] = replace(trial, artifact=None, why=why)
        else:
            calls[trial.name] = call
    return calls, seen


def _opened(trial: Trial, component: str, plain: torch.nn.Module, opening: Opening) -> torch.nn.Module:
    """A trial's component; all of torch's are on the same weights."""
    if trial.name == TORCH or trial.artifact is None:
        return plain
    if trial.hooks:
        return hook(twin(plain), trial.hooks, trial.artifact.path, device_of(opening))
    return open_component(trial.artifact, component, opening)


@dataclass(frozen=True)
class Asked:
    """What a component is asked for. call: makes of a module a call that is timed. difference: how far a module is from torch's in such a call."""

    call: Callable[[Any], Callable[[], object]]
    difference: Callable[[Any, Any], Difference]


def _text_asked(artifact: Artifact, component: str, params: BuildFastest, opening: Opening) -> Asked:
    words = int(open_language(artifact, opening).model.config.get_text_config().vocab_size)
    generator = torch.Generator(CPU).manual_seed(0)
    drawn = torch.randint(0, words, (params.batch, params.prompt_tokens), generator=generator, device=CPU)
    tokens = drawn.to(opening.device)
    length = {"max_new_tokens": params.new_tokens, "min_new_tokens": params.new_tokens}
    call = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens), **length}
    return Asked(lambda model: partial(model.generate, tokens, **call), partial(apart_in_steps, tokens, call))


def _image_asked(artifact: Artifact, component: str, params: BuildFastest, opening: Opening) -> Asked:
    task = open_task(artifact, opening)
    recorded = first_calls(task, (component,), repeated(task.examples, params.batch))[component]

    def call(module: Any) -> Callable[[], object]:
        return partial(getattr(module, task.function_of(component)), **recorded)

    return Asked(call, lambda plain, other: compare(call(plain), call(other)))


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
    """The artifact with each component's files from the trial that won, and the hooks of torch's."""
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
    made = made.replacing({name: trial.components[name].format for name, trial in engines.items()})
    write_manifest(replace(made, settings=kept[artifact.main].settings) if artifact.main in kept else made)


def _place(file: Path, target: Path) -> None:
    """Put a trial's file into the artifact and leave the trial whole, for the run may be cut off here too."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
