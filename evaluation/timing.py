"""Interleaved timing of two models in one process: blocks in random order, and the baseline against itself for the noise."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.data import Item
from compress.events import Emit, Event, track
from compress.recipe import EvalSpec
from evaluation.collect import Viewpoint
from evaluation.energy import Meter, find_meter
from evaluation.evidence import Floats, Timings

WARM_UP = 2
MORE_WARM_UP, SETTLED = 8, 0.1  # most further calls of a side, until two in a row differ by no more than this share
MOST_SECONDS = 20.0  # that those further calls may take, all sides together
FEWEST_JUDGED, FAR_LONGER = 12, 1.25
Run = Callable[[], tuple[float, float]]  # makes one call; seconds of the call, seconds until its first token (0: none)


@dataclass(frozen=True)
class Interleaved:
    """Both sides' timings, and the baseline's own second call in each block: what a metric makes of that is its noise (A/A).

    unsettled: in words, which side's first blocks took far longer than its later ones, as when it was never warmed up.
    """

    baseline: Timings
    candidate: Timings
    again: Timings
    unsettled: str = ""


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
) -> Interleaved:
    """Time two sides against each other.

    Args:
        work: denoiser evaluations or tokens of one call, baseline's and candidate's.
        meter: reads the energy that each call draws.
    """
    found = interleave([baseline, candidate, baseline], blocks, seed, emit, meter)
    seconds, none = found[:, :, 0], np.zeros((0, 3))
    first, joules = found[:, :, 1] if found[:, :, 1].any() else none, found[:, :, 2] if meter else none
    sides = ((0, work[0]), (1, work[1]), (2, work[0]))
    one, other, again = (
        Timings(seconds[:, s], first[:, s], done, items, joules[:, s], meter.name if meter else "", prompt_tokens)
        for s, done in sides
    )
    # Both of a block's calls of the baseline say how warm it was.
    said = (started_slowly("baseline", (seconds[:, 0] + seconds[:, 2]) / 2), started_slowly("candidate", seconds[:, 1]))
    unsettled = "; ".join(filter(None, said))
    if unsettled:
        emit(Event("warning", "timing", unsettled))
    return Interleaved(one, other, again, unsettled)


def started_slowly(side: str, seconds: Floats) -> str:
    """In words, that a side's first blocks [n] took far longer than its later ones; "" where they did not.

    Both must hold of the first half of the blocks, three eighths or a quarter: their median lies a quarter above that of the others, and
    four in five of them above the others' 90% point. Where block times scatter by 15% (log-normal) and nothing changes, 1.6% of
    measurements of 12 blocks and 0.3% of 20 are told so wrongly, both sides together; of fewer than 12 nothing is said.
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


def time_views(one: Any, other: Any, base: Viewpoint, candidate: Viewpoint, spec: EvalSpec, emit: Emit) -> Interleaved:
    """Time two opened models against each other, each called as its viewpoint says, on what the recipe asks for.

    Raises:
        ValueError: a side wrote fewer tokens than it was asked for.
    """
    blocks, batch = spec.timing_blocks, spec.timing_batch
    if base.artifact.task == "text_to_image":
        prompts, calls = _timed_prompts(base.items, batch), (dict(base.call), dict(candidate.call))
        runs = painter(one, prompts, calls[0]), painter(other, prompts, calls[1])
        work = (_denoiser_evaluations(one, calls[0]), _denoiser_evaluations(other, calls[1]))
        return time_pair(*runs, work, batch, blocks, spec.seed, emit, find_meter())
    tokens = _timed_tokens(one, base.items, spec)
    runs = writer(one, tokens, spec.new_tokens), writer(other, tokens, spec.new_tokens)
    return time_pair(
        *runs, (spec.new_tokens, spec.new_tokens), batch, blocks, spec.seed, emit, find_meter(), spec.prompt_tokens
    )


def _timed_prompts(items: tuple[Item, ...], batch: int) -> list[str]:
    texts = [item.text for item in items[:batch]] or ["a red three on white paper"]
    return [texts[i % len(texts)] for i in range(batch)]


def _denoiser_evaluations(task: Any, call: Mapping[str, Any]) -> int:
    """Of one call: counted, not assumed."""
    component = task.artifact.main
    calls: list[object] = []
    with task.watch(component, calls.append):
        task.paint(["a red three on white paper"], ["0"], 0, **call)
    return len(calls)


def _timed_tokens(task: Any, items: tuple[Item, ...], spec: EvalSpec) -> list[list[int]]:
    """Prompts of exactly `prompt_tokens` tokens, out of the evaluation data."""
    stream: list[int] = []
    for item in items:
        stream += task.encode(item.text)
        if len(stream) >= spec.prompt_tokens * spec.timing_batch:
            break
    stream = stream or task.encode("The array of values to sort along the given axis.")
    needed = spec.prompt_tokens * spec.timing_batch
    stream = (stream * (needed // len(stream) + 1))[:needed]
    return [stream[i : i + spec.prompt_tokens] for i in range(0, needed, spec.prompt_tokens)]


def painter(task: Any, prompts: Sequence[str], call: dict[str, Any]) -> Run:
    """One call paints all `prompts` as one batch."""
    names = [f"timing/{i}" for i in range(len(prompts))]

    def run() -> tuple[float, float]:
        began = time.perf_counter()
        task.paint(prompts, names, 0, **call)
        return time.perf_counter() - began, 0.0

    return run


def writer(task: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> Run:
    """One call continues all `prompts` (of one length) by exactly `new_tokens` tokens."""
    from transformers.generation.streamers import BaseStreamer

    class FirstToken(BaseStreamer):  # type: ignore[misc]
        """Notes when the first written token arrives; what arrives before it is the prompt."""

        def __init__(self) -> None:
            self.puts: list[float] = []

        def put(self, value: object) -> None:
            self.puts.append(time.perf_counter())

        def end(self) -> None:
            return

    def run() -> tuple[float, float]:
        heard = FirstToken()
        began = time.perf_counter()
        written = task.generate(prompts, new_tokens, streamer=heard)
        seconds = time.perf_counter() - began
        if any(len(row) != new_tokens for row in written):
            raise ValueError(
                f"a side wrote {sorted({len(row) for row in written})} tokens where {new_tokens} were asked for"
            )
        return seconds, heard.puts[1] - began

    return run
