"""Interleaved timing of two models in one process: blocks in random order, and the baseline against itself for the noise."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from compress.events import FIGURE, RECURS, Emit, Event, track
from compress.machine.devices import CPU
from compress.machine.turns import turn
from compress.recipe.values import EvalSpec
from evaluation.evidence import Floats, Timings
from evaluation.observe import gpu_cards
from evaluation.observe.collect import Viewpoint
from evaluation.observe.contention import Watch, reported
from evaluation.observe.energy import Meter, find_meter

if TYPE_CHECKING:
    from compress.opening.models import OpenModel

WARM_UP = 2
MORE_WARM_UP, SETTLED = 8, 0.1  # most further calls of a side, until two in a row differ by no more than this share
MOST_SECONDS = 20.0  # that those further calls may take, all sides together
FEWEST_JUDGED, FAR_LONGER = 12, 1.25
Run = Callable[[], tuple[float, float]]  # makes one call; seconds of the call, seconds until its first token (0: none)


@dataclass(frozen=True)
class Interleaved:
    """Both sides' timings, and the baseline's own second call in each block: what a metric makes of that is its noise (A/A).

    unsettled: in words, why these times prove nothing: a side's first blocks took far longer than its later ones, as when it was
        never warmed up, or other processes took a good part of the machine, or heat or want of power slowed the GPU.
    others: the share of the machine that other processes took meanwhile; None where that is not known.
    beside: timings of further models, in the same blocks.
    card: the GPU's clocks before and after, as facts of the machine.
    inside: what the calls of baseline and candidate really were, as their hooked modules counted them, and by what packed
        layers and engines computed; "" where there is nothing to tell.
    """

    baseline: Timings
    candidate: Timings
    again: Timings
    unsettled: str = ""
    others: float | None = None
    beside: tuple[Timings, ...] = ()
    card: Mapping[str, object] = field(default_factory=dict)
    inside: tuple[str, str] = ("", "")


def interleave(runs: Sequence[Run], blocks: int, seed: int, emit: Emit, meter: Meter | None = None) -> Floats:
    """Call each of `runs` once a block, in an order drawn anew for each.

    Returns:
        [blocks, runs, 3]: seconds, seconds until the first token, and joules (0 without a meter).
    """
    warm_up(runs)
    order = np.random.default_rng(seed)
    found = np.zeros((blocks, len(runs), 3))
    gc.collect()
    gc.disable()  # a collection would fall on whichever side happens to be running
    try:
        for block in track(range(blocks), emit, "timing, interleaved", blocks):
            for which in order.permutation(len(runs)):
                before = meter.read() if meter else 0.0
                found[block, which, :2] = runs[which]()
                found[block, which, 2] = meter.read() - before if meter else 0.0
    finally:
        gc.enable()
    return found


def warm_up(runs: Sequence[Run]) -> None:
    """Call each side twice, and on until two calls in a row take about as long: an engine that compiles, a cache that fills."""
    spent = 0.0
    for run in dict.fromkeys(runs):  # the baseline may stand there twice
        last, now = (run()[0] for _ in range(WARM_UP))
        for _ in range(MORE_WARM_UP):
            if abs(now - last) <= SETTLED * max(now, last) or spent + now > MOST_SECONDS:
                break
            last, now = now, run()[0]
            spent += now


def time_pair(
    baseline: Run,
    candidate: Run,
    work: tuple[int, int],
    items: int,
    blocks: int,
    seed: int,
    emit: Emit,
    meter: Meter | None = None,
    prompt_tokens: int = 0,
    beside: Sequence[tuple[str, Run, int]] = (),
    device: str = CPU,
    apart: bool = False,
) -> Interleaved:
    """Time two sides against each other, and others beside them.

    Args:
        work: denoiser evaluations or tokens of one call, baseline's and candidate's.
        meter: reads the energy that each call draws.
        beside: further models by name, each with its work.
        device: that the sides run on.
        apart: whether they run in other processes, here or elsewhere: then nobody knows what of the machine is taken by others.
    """
    runs = [baseline, candidate, *(run for _, run, _ in beside), baseline]
    with turn(device, emit):
        before = gpu_cards.state(device)
        with Watch() as watch:
            found = interleave(runs, blocks, seed, emit, meter)
        after = gpu_cards.state(device)
    seconds, none = found[:, :, 0], np.zeros((0, len(runs)))
    first, joules = found[:, :, 1] if found[:, :, 1].any() else none, found[:, :, 2] if meter else none
    one, other, *more, again = (
        Timings(seconds[:, s], first[:, s], done, items, joules[:, s], meter.name if meter else "", prompt_tokens)
        for s, done in enumerate((*work, *(done for _, _, done in beside), work[0]))
    )
    names = ["candidate", *(name for name, _, _ in beside)]
    # Both of a block's calls of the baseline say how warm it was.
    slow = [started_slowly("baseline", (seconds[:, 0] + seconds[:, -1]) / 2)]
    slow += [started_slowly(name, seconds[:, s]) for s, name in enumerate(names, 1)]
    share = None if apart else watch.share
    others, slowed = reported(share), gpu_cards.slowed(before, after)
    wrong: list[tuple[str, dict[str, object]]] = [
        ("; ".join(filter(None, slow)), {}),
        (others, {RECURS: "others", FIGURE: share}),
        (slowed, {RECURS: "slowed", FIGURE: 0.0}),
    ]
    for message, facts in wrong:
        if message:
            emit(Event("warning", " beside ".join(("timing", *names[1:])), message, facts=facts))
    unsettled = "; ".join(message for message, _ in wrong if message)
    return Interleaved(one, other, again, unsettled, share, tuple(more), gpu_cards.clocks(before, after))


def started_slowly(side: str, seconds: Floats) -> str:
    """In words, that a side's first blocks [n] took far longer than its later ones; "" where they did not.

    Both must hold of the first half of the blocks, three eighths or a quarter: their median lies a quarter above that of the others, and
    four in five of them above the others' 90% point. Where block times scatter by 15% (log-normal) and nothing changes, 1.6% of
    measurements of 12 blocks and 0.3% of 20 are reported so wrongly, both sides together; of fewer than 12 nothing is stated.
    """
    blocks = len(seconds)
    for early in (blocks // 2, 3 * blocks // 8, blocks // 4) if blocks >= FEWEST_JUDGED else ():
        first, later = seconds[:early], seconds[early:]
        times = float(np.median(first) / np.median(later))
        if times > FAR_LONGER and (first > np.quantile(later, 0.9)).sum() >= early - early // 5:
            return (
                f"the {side}'s first {early} blocks took {times:.2f}× of its later ones: it was not warmed up, "
                "or the machine changed meanwhile"
            )
    return ""


def time_views(
    one: OpenModel,
    other: OpenModel,
    base: Viewpoint,
    candidate: Viewpoint,
    spec: EvalSpec,
    emit: Emit,
    beside: Mapping[str, tuple[OpenModel, Viewpoint]] = MappingProxyType({}),
) -> Interleaved:
    """Time two opened models against each other, each called as its viewpoint says, on what the recipe asks for.

    Args:
        beside: further models by name, timed in the same blocks.

    Raises:
        ValueError: a side wrote fewer tokens than it was asked for.
    """
    # All sides are given the baseline's items: its tokenizer makes the prompts of all.
    items = base.items[:: base.each]
    timed = one.timed(items, spec, base.call), other.timed(items, spec, candidate.call)
    work, prompt = (timed[0].work, timed[1].work), timed[0].prompt_tokens
    runs = timed[0].run, timed[1].run
    more = [(name, model.timed(items, spec, view.call)) for name, (model, view) in beside.items()]
    others, size, blocks = [(name, one.run, one.work) for name, one in more], spec.timing_batch, spec.timing_blocks
    return time_pair(*runs, work, size, blocks, spec.seed, emit, find_meter(), prompt, others, one.opening.device)
