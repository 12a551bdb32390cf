"""Interleaved timing of two models in one process: blocks in random order, and the baseline against itself for the noise."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.events import Emit, track
from evaluation.evidence import Timings

WARM_UP = 2
Run = Callable[[], tuple[float, float]]  # makes one call; seconds of the call, seconds until its first token (0: none)


@dataclass(frozen=True)
class Interleaved:
    """Both sides' timings, and the baseline's own second call in each block: what a metric makes of that is its noise (A/A)."""

    baseline: Timings
    candidate: Timings
    again: Timings


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
    return Interleaved(*(Timings(times[:, side, 0], first[:, side], done, items) for side, done in sides))


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
