"""Torch itself as one of several ways to run a component: with compiled blocks, with calls replayed from CUDA graphs, and with both."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from compress.artifact import Artifact
from compress.engines.parity import Difference, difference
from compress.model.hook_settings import COMPILE, GRAPH, hooked, unhookable
from compress.opening.compile_and_capture import capture, compile_blocks, ran
from compress.opening.hooks import keep_code


def ways(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Each of some hooks by itself, and all that can be made of several, in their order."""
    return tuple(some for count in range(1, len(names) + 1) for some in combinations(names, count))


def with_hooks(artifact: Artifact, names: Sequence[str]) -> tuple[Artifact, str]:
    """The artifact with these hooks, stages by name, in its main component; or why it cannot have them."""
    made = artifact
    for name in names:
        if why := unhookable(made, name):
            return artifact, why
        made = hooked(made, name)
    return made, ""


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """A module of its own on the same weights: what is hooked into it is not in the other."""
    held = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(one): one for one in held})


def hook(module: torch.nn.Module, names: Sequence[str], place: Path, device: torch.device) -> torch.nn.Module:
    """The module with these hooks, as opening an artifact applies them.

    Args:
        place: of the artifact, beside which compiled code is kept.

    Raises:
        UserError: it has no blocks to compile, or takes no graphs.
    """
    if COMPILE in names:
        keep_code(place, device)
        compile_blocks(module)
    if GRAPH in names:
        capture(module)
    return module


def fell_back(module: torch.nn.Module) -> str:
    """Why calls of a hooked module were eager that a graph should have answered, or ""."""
    calls = ran(module).calls
    return "; ".join(calls.eager) if calls else ""


class Followed(LogitsProcessor):  # type: ignore[misc]
    """Keeps a generation's scores, and lets it go on with tokens [batch, tokens] that are given, whatever it would have chosen."""

    def __init__(self, tokens: torch.Tensor | None = None) -> None:
        self.tokens = tokens
        self.seen: list[torch.Tensor] = []

    def __call__(self, written: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.float())
        if self.tokens is None:
            return scores
        step = len(self.seen) - 1
        return torch.full_like(scores, float("-inf")).scatter(1, self.tokens[:, step : step + 1], 0.0)


def apart_in_steps(prompt: torch.Tensor, call: Mapping[str, Any], plain: Any, other: Any) -> Difference:
    """How far a language model's scores are from another's at each step, both written down behind the same tokens, int64 [batch, tokens]."""
    theirs = Followed()
    written = plain.generate(prompt, logits_processor=LogitsProcessorList([theirs]), **call)
    ours = Followed(written[:, prompt.shape[1] :])
    other.generate(prompt, logits_processor=LogitsProcessorList([ours]), **call)
    expected, found = torch.stack(theirs.seen), torch.stack(ours.seen)
    open_ = expected != float("-inf")  # all but tokens that may not end a text yet; whatever else is not finite counts
    return difference({"scores": found.where(open_, 0.0)}, {"scores": expected.where(open_, 0.0)})
