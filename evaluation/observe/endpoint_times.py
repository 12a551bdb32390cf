"""Two endpoints timed in turns, as opened models are: blocks in random order, and the baseline against itself for the noise.

A time goes from the request to the answer's last byte, so what lies between, network and queue, is in it. Each block makes the same calls: what a
server keeps of a prompt it has read, it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from compress.data.items import Item
from compress.endpoints.images import PROMPT, ImageCalls, seed_of
from compress.endpoints.served import Served
from compress.endpoints.texts import TRIED, Asked, TextCalls
from compress.errors import StageFailed
from compress.events import Emit, Event
from compress.tasks.text_generation import Writing
from evaluation.observe.endpoints import answering
from evaluation.observe.timing import Interleaved, Run, time_pair

if TYPE_CHECKING:
    from compress.recipe.values import EvalSpec
    from evaluation.observe.collect import Viewpoint

LOOKED_AT = 8  # prompts, for some that both sides answer at length
Call = Callable[[], tuple[float, float]]


def time_endpoints(views: tuple[Viewpoint, Viewpoint], spec: EvalSpec, emit: Emit) -> Interleaved:
    """Time two endpoints against each other; `timing_batch` requests go out at a time.

    Raises:
        StageFailed: an answer does not come, or is too short to be timed.
    """
    base, candidate = (_calls(view) for view in views)
    items = views[0].items[:: views[0].each]
    work = read = 0
    if isinstance(base, ImageCalls) and isinstance(candidate, ImageCalls):
        calls = [_of_images(one, items, spec) for one in (base, candidate)]
    elif isinstance(base, TextCalls) and isinstance(candidate, TextCalls):
        asked, work, read = _prompts(base, candidate, items, spec, emit)
        calls = [[partial(one.timed, prompt, work) for prompt in asked] for one in (base, candidate)]
    else:
        raise ValueError("one side gives images and the other texts")
    with ThreadPoolExecutor(spec.timing_batch) as one, ThreadPoolExecutor(spec.timing_batch) as other:
        baseline: Run = partial(_at_once, "baseline", calls[0], one)
        run: Run = partial(_at_once, "candidate", calls[1], other)
        size, blocks = spec.timing_batch, spec.timing_blocks
        return time_pair(baseline, run, (work, work), size, blocks, spec.seed, emit, None, read, apart=True)


def _calls(view: Viewpoint) -> ImageCalls | TextCalls:
    if not isinstance(view.artifact, Served) or view.artifact.calls is None:
        raise ValueError("a side that is timed against an endpoint is none, or was not looked at")
    return view.artifact.calls


def _at_once(side: str, calls: Sequence[Call], pool: ThreadPoolExecutor) -> tuple[float, float]:
    """All calls at a time: seconds until the last is answered, and until each has its first token."""
    with answering(side, (), ()):
        if len(calls) == 1:
            return calls[0]()
        began = time.perf_counter()
        firsts = [first for _, first in pool.map(lambda call: call(), calls)]
        return time.perf_counter() - began, max(firsts)


def _of_images(calls: ImageCalls, items: Sequence[Item], spec: EvalSpec) -> list[Call]:
    some = items[: spec.timing_batch] or (Item("0", PROMPT),)

    def call(prompt: str, seed: int) -> tuple[float, float]:
        return calls.timed(prompt, seed), 0.0

    return [
        partial(call, some[i % len(some)].text, seed_of(spec.seed, f"timing/{i}")) for i in range(spec.timing_batch)
    ]


def _prompts(
    one: TextCalls, other: TextCalls, items: Sequence[Item], spec: EvalSpec, emit: Emit
) -> tuple[list[Asked], int, int]:
    """Prompts that both sides answer at the same length, that length in tokens, and about how many tokens the prompts have.

    Raises:
        StageFailed: there are none.
    """
    own = spec.of(Writing)
    found: list[tuple[int, int, Asked]] = []
    uncounted = dict[str, None]()
    for item in items[:LOOKED_AT] or (Item("0", TRIED),):
        asked = one.asked(item, own.prompt_tokens)
        with answering("baseline", (), ()):
            mine = one.write(asked, own.new_tokens, exact=True)
        with answering("candidate", (), ()):
            theirs = other.write(asked, own.new_tokens, exact=True)
        uncounted |= {
            side: None
            for side, w in (("baseline", mine), ("candidate", theirs))
            if w.text and not (w.whole or w.length)
        }
        reach = min(own.new_tokens if w.whole else w.length - 1 for w in (mine, theirs))
        found.append((reach, mine.read, asked))
        if sum(reach == own.new_tokens for reach, *_ in found) == spec.timing_batch:
            break
    found = sorted((row for row in found if row[0] > 1), key=lambda row: -row[0])[: spec.timing_batch]
    if not found and uncounted:
        message = f"the {' and the '.join(uncounted)} ended all answers before {own.new_tokens} tokens and counts none (`usage`)"
        fix = "let the server tell its `usage`, ask for fewer tokens (evaluate.new_tokens), or drop the speeds"
        raise StageFailed(f"{message}, so it is not known how many are timed", fix=fix)
    if not found:
        message = f"none of {len(items[:LOOKED_AT]) or 1} prompts is answered with two tokens or more by both sides"
        raise StageFailed(f"{message}, so there is no token to be timed", fix="give other prompts, or drop the speeds")
    length = found[-1][0]
    if length < own.new_tokens:
        message = f"the servers end their answers before {own.new_tokens} tokens: calls of {length} are timed"
        emit(Event("warning", "timing", message))
    return [found[i % len(found)][2] for i in range(spec.timing_batch)], length, found[0][1]
