"""Interleaved timing of two models in one process: blocks in random order, and the baseline against itself for the noise."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.data import Item
from compress.events import Emit, track
from compress.recipe import EvalSpec
from evaluation.collect import Viewpoint
from evaluation.evidence import Timings

WARM_UP = 2
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


def interleave(runs: Sequence[Run], blocks: int, seed: int, emit: Emit) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Call each of `runs` once a block, in an order drawn anew for each. Returns [blocks, runs, 2] seconds."""
    for run in runs:
        for _ in range(WARM_UP):
            run()
    order = np.random.default_rng(seed)
    times = np.zeros((blocks, len(runs), 2))
    gc.collect()
    gc.disable()  # a collection would fall on whichever side happens to be running
    try:
        for block in track(range(blocks), emit, "timing, interleaved", blocks):
            for which in order.permutation(len(runs)):
                times[block, which] = runs[which]()
    finally:
        gc.enable()
    return times


def time_pair(
    baseline: Run, candidate: Run, work: tuple[int, int], items: int, blocks: int, seed: int, emit: Emit
) -> Interleaved:
    """Time two sides against each other.

    Args:
        work: denoiser evaluations or tokens of one call, baseline's and candidate's.
    """
    times = interleave([baseline, candidate, baseline], blocks, seed, emit)
    first = times[:, :, 1] if times[:, :, 1].any() else np.zeros((0, 3))
    sides = ((0, work[0]), (1, work[1]), (2, work[0]))
    one, other, again = (Timings(times[:, side, 0], first[:, side], done, items) for side, done in sides)
    return Interleaved(one, other, again)


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
        return time_pair(*runs, work, batch, blocks, spec.seed, emit)
    tokens = _timed_tokens(one, base.items, spec)
    runs = writer(one, tokens, spec.new_tokens), writer(other, tokens, spec.new_tokens)
    return time_pair(*runs, (spec.new_tokens, spec.new_tokens), batch, blocks, spec.seed, emit)


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
